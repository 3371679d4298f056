"""A GGUF model, in one file or in parts, as a ModelSource: its own names are the canonical ones."""

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from corral.errors import CorruptModel
from corral.weights.fields import Fields
from corral.weights.ggml_types import FILE_TYPES
from corral.weights.gguf import GGUFFile
from corral.weights.gguf_split import open_parts
from corral.weights.gguf_text import read_text
from corral.weights.source import Published, TensorInfo, TextAssets, prevailing_type

if TYPE_CHECKING:
    from corral.weights.qtensor import QTensor

_ARCHITECTURE = "general.architecture"


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
        self.tensors: Mapping[str, TensorInfo] = {
            info.name: TensorInfo(info.name, info.shape, info.type, info.nbytes)
            for file in self._files
            for info in file.tensors.values()
        }
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
        """A tensor that views the file."""
        from corral.weights.tensors import (
            load_tensor,
        )  # with an array library, which the server does not need

        return load_tensor(self._file_of.get(name, self._files[0]), name)

    def release(self, name: str) -> None:
        """Give the pages of a tensor back."""
        self._file_of[name].release(name)

    def close(self) -> None:
        """End the use of the files."""
        for file in self._files:
            file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _with_vocab_size(metadata: Mapping[str, Any], architecture: str) -> Mapping[str, Any]:
    """The metadata; `vocab_size` is the number of tokens where the file lists them."""
    tokens = metadata.get("tokenizer.ggml.tokens")
    if tokens is None:
        return metadata
    if isinstance(tokens, str | int | float):
        raise CorruptModel("metadata: 'tokenizer.ggml.tokens' must be an array of texts")
    return {**metadata, f"{architecture}.vocab_size": len(tokens)}
