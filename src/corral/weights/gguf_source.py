"""A GGUF model, in one file or in parts, as a ModelSource: its own names are the canonical ones.

The first Mixtral files have a tensor for each expert, `blk.0.ffn_gate.3.weight`; they are stacked here.
"""

import re
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from corral.errors import CorruptModel
from corral.weights.fields import Fields
from corral.weights.ggml_types import FILE_TYPES
from corral.weights.gguf import GGUFFile
from corral.weights.gguf import TensorInfo as Place
from corral.weights.gguf_split import open_parts
from corral.weights.gguf_text import read_text
from corral.weights.source import Published, TensorInfo, TextAssets, prevailing_type

if TYPE_CHECKING:
    from corral.weights.qtensor import QTensor

_ARCHITECTURE = "general.architecture"
_EXPERT = re.compile(r"(blk\.\d{1,5}\.ffn_(?:gate|up|down))\.(\d{1,5})\.weight")


class GGUFSource:
    """See ModelSource."""

    format = "gguf"

    def __init__(self, first: GGUFFile, *others: GGUFFile):
        """`others` are the further parts of a model in several files."""
        self.name = first.path.name
        self.metadata: Mapping[str, Any] = first.metadata
        architecture = self.metadata.get(_ARCHITECTURE)
        if not isinstance(architecture, str) or not architecture:
            raise CorruptModel(f"metadata: '{_ARCHITECTURE}' must be a text, got {architecture!r:.80}")
        self.architecture = architecture
        self.fields = Fields(_with_vocab_size(self.metadata, architecture), f"{architecture}.")
        self._files = (first, *others)
        self._file_of = {name: file for file in self._files for name in file.tensors}
        self._stacks = _find_stacks(self._file_of)
        single = {name: file.tensors[name] for name, file in self._file_of.items()}
        self.tensors: Mapping[str, TensorInfo] = {
            name: TensorInfo(name, info.shape, info.type, info.nbytes)
            for name, info in single.items()
            if _EXPERT.fullmatch(name) is None
        } | {name: _combine(name, [single[one] for one in names]) for name, names in self._stacks.items()}
        mixture = self.metadata.get("general.file_type")
        named = FILE_TYPES.get(mixture) if isinstance(mixture, int) else None
        self.quantization = named or prevailing_type(self.tensors.values())

    @classmethod
    def open(cls, path: Path) -> Self:
        """Map the file, and its other parts if it is one of several, and read the headers."""
        return cls(*open_parts(path))

    @property
    def size(self) -> int:
        """Bytes of all parts."""
        return sum(file.size for file in self._files)

    @cached_property
    def text(self) -> TextAssets:
        """The vocabulary and the chat templates of the metadata."""
        return read_text(self.metadata)

    def named(self, published: Published) -> Self:
        """Itself."""
        return self

    def tensor(self, name: str) -> "QTensor":
        """A tensor that views the files; one of several experts may view several places."""
        # With an array library, which the server does not need.
        from corral.weights.tensors import load_tensor, view_tensor

        if name in self._stacks:
            matrices = [self._file_of[one].tensor_bytes(one) for one in self._stacks[name]]
            return view_tensor(self.name, self.tensors[name], matrices)
        return load_tensor(self._file_of.get(name, self._files[0]), name)

    def release(self, name: str) -> None:
        """Give the pages of a tensor back."""
        for one in self._stacks.get(name, [name]):
            self._file_of[one].release(one)

    def close(self) -> None:
        """End the use of the files."""
        for file in self._files:
            file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _find_stacks(names: Iterable[str]) -> dict[str, list[str]]:
    """The names of the experts' own tensors, in order, by that of their stack."""
    found: dict[str, dict[int, str]] = {}
    for name in names:
        if match := _EXPERT.fullmatch(name):
            found.setdefault(f"{match[1]}_exps.weight", {})[int(match[2])] = name
    for stack, experts in found.items():
        if missing := [number for number in range(len(experts)) if number not in experts]:
            raise CorruptModel(f"the tensor '{stack}' lacks expert {missing[0]}")
    return {stack: [experts[number] for number in range(len(experts))] for stack, experts in found.items()}


def _combine(name: str, experts: list[Place]) -> TensorInfo:
    """The stack of these tensors; CorruptModel if they differ."""
    first = experts[0]
    if any((one.shape, one.type) != (first.shape, first.type) for one in experts):
        raise CorruptModel(f"the tensors of '{name}' differ in shape or type from expert to expert")
    return TensorInfo(name, (len(experts), *first.shape), first.type, sum(one.nbytes for one in experts))


def _with_vocab_size(metadata: Mapping[str, Any], architecture: str) -> Mapping[str, Any]:
    """The metadata; `vocab_size` is the number of tokens where the file lists them."""
    tokens = metadata.get("tokenizer.ggml.tokens")
    if tokens is None:
        return metadata
    if isinstance(tokens, str | int | float):
        raise CorruptModel("metadata: 'tokenizer.ggml.tokens' must be an array of texts")
    return {**metadata, f"{architecture}.vocab_size": len(tokens)}
