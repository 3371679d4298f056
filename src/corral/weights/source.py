"""Where a model comes from: one view of a file or a folder, whatever its format.

Canonical names. Code above this package knows one spelling of every field and tensor, the one of GGUF files:
fields without the architecture in front (`attention.head_count`), tensors whole (`blk.0.attn_q.weight`; the
experts of a layer in one tensor [E, rows, cols], `blk.0.ffn_gate_exps.weight`). A family says in a Published
table what its authors call them, and `ModelSource.named` applies it where the source has the authors' names.

Imports no array library: the server process opens sources too.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from corral.weights.fields import Fields

if TYPE_CHECKING:
    from corral.weights.qtensor import QTensor


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """A tensor as its source lists it. Shape, rows first: (rows, cols), (n,) for vectors, (E, rows, cols)."""

    name: str
    shape: tuple[int, ...]
    type: str  # as users know it: Q4_K, F32, BF16
    nbytes: int


@dataclass(frozen=True, slots=True)
class Constant:
    """A field that the authors' files do not have because their code fixes it."""

    value: Any


@dataclass(frozen=True, slots=True)
class Published:
    """What a family's authors call its fields and tensors, by canonical name.

    fields: the key in the authors' configuration ("text_config.hidden_size" looks inside), or a Constant.
    tensors: the authors' name; {i} stands for a layer's number, {e} for an expert's: all e are stacked.
    Names without a row are left as they are.
    """

    fields: Mapping[str, str | Constant] = field(default_factory=dict)
    tensors: Mapping[str, str] = field(default_factory=dict)


class ModelSource(Protocol):
    """An open model. Everything is checked against the files' real sizes before it is believed."""

    name: str  # of the file or folder, for messages
    architecture: str  # as the source spells it: "llama", "LlamaForCausalLM"
    fields: Fields
    tensors: Mapping[str, TensorInfo]

    @property
    def size(self) -> int:
        """Bytes of all files with tensors."""
        ...

    def named(self, published: Published) -> "ModelSource":
        """This source by canonical names; a source that has them already gives itself."""
        ...

    def tensor(self, name: str) -> "QTensor":
        """A tensor, not decoded. CorruptModel if missing, UnsupportedModel if its type cannot be run."""
        ...

    def release(self, name: str) -> None:
        """The tensor's bytes are needed no more: give their memory back."""
        ...

    def close(self) -> None:
        """End the use of the files; memory that tensors still use goes with the last of them."""
        ...
