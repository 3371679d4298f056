"""A GGUF file as a ModelSource: its own names are the canonical ones."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Self

from corral.errors import CorruptModel
from corral.weights.fields import Fields
from corral.weights.gguf import GGUFFile, open_gguf
from corral.weights.source import Published, TensorInfo

if TYPE_CHECKING:
    from corral.weights.qtensor import QTensor

_ARCHITECTURE = "general.architecture"


class GGUFSource:
    """See ModelSource."""

    def __init__(self, file: GGUFFile):
        self.file = file
        self.name = file.path.name
        architecture = file.metadata.get(_ARCHITECTURE)
        if not isinstance(architecture, str) or not architecture:
            raise CorruptModel(f"metadata: '{_ARCHITECTURE}' must be a text, got {architecture!r:.80}")
        self.architecture = architecture
        self.fields = Fields(_with_vocab_size(file, architecture), f"{architecture}.")
        self.tensors: Mapping[str, TensorInfo] = {
            info.name: TensorInfo(info.name, info.shape, info.type, info.nbytes)
            for info in file.tensors.values()
        }

    @classmethod
    def open(cls, path: Path) -> Self:
        """Map the file and read its header."""
        return cls(open_gguf(path))

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return self.file.size

    def named(self, published: Published) -> Self:
        """Itself."""
        return self

    def tensor(self, name: str) -> "QTensor":
        """A tensor that views the file."""
        from corral.weights.tensors import (
            load_tensor,
        )  # with an array library, which the server does not need

        return load_tensor(self.file, name)

    def release(self, name: str) -> None:
        """Give the pages of a tensor back."""
        self.file.release(name)

    def close(self) -> None:
        """End the use of the file."""
        self.file.close()


def _with_vocab_size(file: GGUFFile, architecture: str) -> Mapping[str, object]:
    """The metadata; `vocab_size` is the number of tokens where the file lists them."""
    tokens = file.metadata.get("tokenizer.ggml.tokens")
    if tokens is None:
        return file.metadata
    if isinstance(tokens, str | int | float):
        raise CorruptModel("metadata: 'tokenizer.ggml.tokens' must be an array of texts")
    return {**file.metadata, f"{architecture}.vocab_size": len(tokens)}
