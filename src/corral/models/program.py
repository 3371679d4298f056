"""A model as data: a flat list of ops over numbered buffers, weights and KV layers.

A buffer is float32 [N, width] with a row for every token of the batch, or, downstream of Select, [R, width]
with a row for every position whose logits are wanted. Ops name buffers and weights by their index in the
Program.
Letters: N tokens, R logit rows, H heads, K kv heads, D head size.
"""

import enum
from collections.abc import Mapping
from dataclasses import dataclass

from corral.models.kv_groups import KVGroup, group_layers
from corral.types import BLOCK_SIZE
from corral.weights.qtensor import QTensor


class Activation(enum.StrEnum):
    """What a gated feed-forward applies to its gate."""

    SILU = "silu"
    GELU_TANH = "gelu_tanh"


class RopeStyle(enum.StrEnum):
    """Which elements of a head rotate together: (i, i + D/2), or (2i, 2i + 1)."""

    HALF = "half"
    INTERLEAVED = "interleaved"


@dataclass(frozen=True, slots=True)
class Buffer:
    """Float32 rows of `width`; `selected` = one row a logit row instead of one a token."""

    name: str
    width: int
    selected: bool = False


@dataclass(frozen=True, slots=True)
class KVLayer:
    """A layer of the KV cache. window = how many last tokens a query sees (itself included); None = all."""

    kv_heads: int
    head_dim: int
    window: int | None = None


@dataclass(frozen=True, slots=True)
class Embed:
    """out[n] = weight[token[n]] * scale."""

    weight: int
    out: int
    scale: float = 1.0


@dataclass(frozen=True, slots=True)
class RmsNorm:
    """out = x / sqrt(mean(x^2) + eps) * weight over each of `heads` equal parts of a row (QK norm: > 1)."""

    x: int
    weight: int  # [1, width / heads]
    out: int  # may be x
    eps: float
    heads: int = 1


@dataclass(frozen=True, slots=True)
class Linear:
    """outs[i] = x @ weights[i].T + biases[i]: matrices that read the same input stand in one op."""

    x: int
    weights: tuple[int, ...]
    outs: tuple[int, ...]
    biases: tuple[int | None, ...]


@dataclass(frozen=True, slots=True)
class Rope:
    """Rotate x [N or R, H*D] by position: angle = position * frequency(theta, i) / scale / factors[i]."""

    x: int
    heads: int
    head_dim: int
    rotated: int  # leading elements of a head that rotate; = head_dim unless the model says less
    theta: float
    style: RopeStyle
    scale: float = 1.0
    factors: int | None = None  # weight [1, rotated / 2]


@dataclass(frozen=True, slots=True)
class KVWrite:
    """Store this batch's k and v [N, K*D] at their positions in a KV layer."""

    k: int
    v: int
    layer: int


@dataclass(frozen=True, slots=True)
class Attention:
    """out = softmax(q k^T * scale) v over the sequence's stored positions up to the query's own."""

    q: int  # [N, H*D], or [R, H*D]
    out: int  # like q
    layer: int
    heads: int
    scale: float


@dataclass(frozen=True, slots=True)
class Add:
    """out = x + y."""

    x: int
    y: int
    out: int  # may be x or y


@dataclass(frozen=True, slots=True)
class Gated:
    """out = activation(gate) * up."""

    gate: int
    up: int
    out: int  # may be gate
    activation: Activation


@dataclass(frozen=True, slots=True)
class Select:
    """out[r] = x[rows[r]]: from here on only rows whose logits are wanted."""

    x: int
    out: int


@dataclass(frozen=True, slots=True)
class Head:
    """logits = x @ weight.T, handed to the sampler; the last op of a Program."""

    x: int
    weight: int


Op = Embed | RmsNorm | Linear | Rope | KVWrite | Attention | Add | Gated | Select | Head


@dataclass(frozen=True, slots=True)
class Operands:
    """Which fields of an op name buffers: read, written, and read ones that the written one may be."""

    reads: tuple[str, ...]
    writes: tuple[str, ...]
    reuses: tuple[str, ...] = ()


OPERANDS: Mapping[type[Op], Operands] = {
    Embed: Operands((), ("out",)),
    RmsNorm: Operands(("x",), ("out",), ("x",)),
    Linear: Operands(("x",), ("outs",)),
    Rope: Operands(("x",), ()),  # in place
    KVWrite: Operands(("k", "v"), ()),
    Attention: Operands(("q",), ("out",)),
    Add: Operands(("x", "y"), ("out",), ("x", "y")),
    Gated: Operands(("gate", "up"), ("out",), ("gate",)),
    Select: Operands(("x",), ("out",)),
    Head: Operands(("x",), ()),
}


@dataclass(frozen=True, slots=True)
class Program:
    """Everything that an executor needs to run a model."""

    buffers: tuple[Buffer, ...]
    weights: tuple[QTensor, ...]
    kv_layers: tuple[KVLayer, ...]
    ops: tuple[Op, ...]
    vocab_size: int
    context_length: int

    @property
    def kv_groups(self) -> tuple[KVGroup, ...]:
        """The layers that share blocks: one group if shapes differ, as they cannot take each other's."""
        if len({(layer.kv_heads, layer.head_dim) for layer in self.kv_layers}) != 1:
            return (KVGroup(None, tuple(range(len(self.kv_layers)))),)
        return group_layers([layer.window for layer in self.kv_layers])

    def kv_block_bytes(self, element_size: int = 2) -> int:
        """Bytes of K and V in one block: BLOCK_SIZE positions of the layers of one group."""
        layers = [self.kv_layers[number] for number in self.kv_groups[0].layers]
        return BLOCK_SIZE * sum(2 * layer.kv_heads * layer.head_dim * element_size for layer in layers)
