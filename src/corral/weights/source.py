"""Where a model comes from: one view of a file or a folder, whatever its format.

Canonical names. Code above this package knows one spelling of every field and tensor, the one of GGUF files:
fields without the architecture in front (`attention.head_count`), tensors whole (`blk.0.attn_q.weight`; the
experts of a layer in one tensor [E, rows, cols], `blk.0.ffn_gate_exps.weight`). A family says in a Published
table what its authors call them, and `ModelSource.named` applies it where the source has the authors' names.

Imports no array library: the server process opens sources too.
"""

from collections.abc import Iterable, Mapping
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
class Part:
    """One of `of` equal parts of a tensor's rows, from 0: gates in gate_up_proj [E, 2 F, H] are 0 of 2."""

    tensor: str
    index: int
    of: int


Pattern = str | Part | tuple[str | Part, ...]


@dataclass(frozen=True, slots=True)
class Published:
    """What a family's authors call its fields and tensors, by canonical name.

    fields: the key in the authors' configuration, or a Constant.
    tensors: the authors' name or a Part of a tensor; several where releases differ, of which the first that a
    model has counts. {i} stands for a layer's number, {e} for an expert's: the tensors of all e are stacked.
    Fields without a row are left as they are, and so are tensors, which are then refused as unused.
    A folder translates by itself what nearly all authors call the same: see weights/hf_config.py.
    """

    fields: Mapping[str, str | Constant] = field(default_factory=dict)
    tensors: Mapping[str, Pattern] = field(default_factory=dict)


def prevailing_type(tensors: Iterable[TensorInfo]) -> str:
    """The tensor type that takes most bytes."""
    sizes: dict[str, int] = {}
    for tensor in tensors:
        sizes[tensor.type] = sizes.get(tensor.type, 0) + tensor.nbytes
    return max(sizes, key=lambda name: sizes[name], default="unknown")


DEFAULT_TEMPLATE = "default"  # the name of the chat template that is used unless another is asked for


@dataclass(frozen=True, slots=True)
class TextAssets:
    """What a model's files hold for the text side, not yet interpreted; `text/` makes tokeniser and template
    of it.

    vocabulary: fields by canonical name, the one of GGUF's metadata without `tokenizer.ggml.`: model, pre,
    tokens (UTF-8, by id), token_type, scores, merges, eos_token_id, add_bos_token, add_space_prefix;
    `rstrip_ids` are tokens that swallow the white space after them, `end_ids` tokens that end a reply beside
    those of the other fields. Where there is a tokenizer.json, it holds the tokens, and `names` the texts of
    bos_token, eos_token, unk_token and pad_token.
    """

    vocabulary: Mapping[str, Any]
    tokenizer_json: bytes = b""
    names: Mapping[str, str] = field(default_factory=dict)
    templates: Mapping[str, str] = field(default_factory=dict)  # chat templates by name
    sampling: Mapping[str, float] = field(
        default_factory=dict
    )  # the authors' defaults, by a Modelfile's names


class ModelSource(Protocol):
    """An open model. Everything is checked against the files' real sizes before it is believed."""

    format: str  # "gguf", "safetensors": for people to read, nothing depends on it
    name: str  # of the file or folder, for messages
    architecture: str  # as the source spells it: "llama", "LlamaForCausalLM"
    fields: Fields
    tensors: Mapping[str, TensorInfo]
    metadata: Mapping[str, Any]  # what the files say, by whole names, for people to read
    quantization: str  # of most weights, or a mixture's name: "BF16", "Q4_K_M"

    @property
    def size(self) -> int:
        """Bytes of all files with tensors."""
        ...

    @property
    def text(self) -> TextAssets:
        """What there is for tokeniser and templates; read when first asked for, valid until `close`."""
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

    def __enter__(self) -> "ModelSource": ...
    def __exit__(self, *_: object) -> None: ...
