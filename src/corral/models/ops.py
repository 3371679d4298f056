"""The ops of a model: frozen dataclasses whose fields say by their annotation what they number.

Numbers are of values in a Graph and of buffers in a Program; of weights and KV layers in both. What
handles ops of any kind (passes, placement, packing) goes by these annotations, and `native/ops.h` has a
struct of the same name and fields for each op that the native executor runs.

A value is float32 [N, width] with a row for every token of the batch or, downstream of Select, [R, width]
with a row for every position whose logits are wanted.
Letters: N tokens, R logit rows, H heads, K kv heads, D head size (Dk of a key, Dv of a value), P pairs of a
head that rotate, E experts of a layer, k of them for a row, F width of one's hidden layer.
"""

import enum
from collections.abc import Mapping
from dataclasses import dataclass, replace
from inspect import get_annotations
from typing import Annotated, Any, ClassVar, get_args


class Role(enum.Enum):
    """What the number in a field of an op is of."""

    READ = enum.auto()  # a value: row n of what is written needs row n of it, and no other
    REUSABLE = enum.auto()  # the same, and what is written may take its place in memory
    READ_ALL = enum.auto()  # a value of which all rows are needed, whichever rows are wanted
    WRITTEN = enum.auto()  # a value that the op makes
    MATRIX = enum.auto()  # a weight [rows, cols], or [E, rows, cols]
    VECTOR = enum.auto()  # a weight [1, cols] of plain floats
    LAYER = enum.auto()  # a KV layer


Read = Annotated[int, Role.READ]
Reusable = Annotated[int, Role.REUSABLE]
ReadAll = Annotated[int, Role.READ_ALL]
Written = Annotated[int, Role.WRITTEN]
Matrix = Annotated[int, Role.MATRIX]
Vector = Annotated[int, Role.VECTOR]
Layer = Annotated[int, Role.LAYER]

READS = (Role.READ, Role.REUSABLE, Role.READ_ALL)
VALUES = (*READS, Role.WRITTEN)
WEIGHTS = (Role.MATRIX, Role.VECTOR)


class Activation(enum.StrEnum):
    """What a gated feed-forward applies to its gate."""

    SILU = "silu"
    GELU_TANH = "gelu_tanh"


class RopeStyle(enum.StrEnum):
    """Which elements of a head rotate together: (i, i + P), or (2i, 2i + 1)."""

    HALF = "half"
    INTERLEAVED = "interleaved"


def _role_in(annotation: Any) -> Role | None:
    """The role that an annotation, or a part of it (`tuple[Vector | None, ...]`), has."""
    for each in getattr(annotation, "__metadata__", ()):
        if isinstance(each, Role):
            return each
    return next((role for role in map(_role_in, get_args(annotation)) if role is not None), None)


@dataclass(frozen=True, slots=True)
class Op:
    """One operation of a model. `roles` has the fields that number something, in their order."""

    roles: ClassVar[Mapping[str, Role]] = {}

    def __init_subclass__(cls) -> None:
        found = {name: _role_in(annotation) for name, annotation in get_annotations(cls).items()}
        cls.roles = {name: role for name, role in found.items() if role is not None}


@dataclass(frozen=True, slots=True)
class Embed(Op):
    """out[n] = weight[token[n]] * scale."""

    weight: Matrix
    out: Written
    scale: float = 1.0


@dataclass(frozen=True, slots=True)
class Input(Op):
    """out[n] = inputs[n]: rows that the batch brings in place of tokens."""

    out: Written


@dataclass(frozen=True, slots=True)
class RmsNorm(Op):
    """out = x / sqrt(mean(x^2) + eps) * weight over each of `heads` equal parts of a row (QK norm: > 1)."""

    x: Reusable
    weight: Vector  # [1, width / heads]
    out: Written
    eps: float
    heads: int = 1


@dataclass(frozen=True, slots=True)
class LayerNorm(Op):
    """out = (x - mean(x)) / sqrt(variance(x) + eps) * weight + bias over each row."""

    x: Reusable
    weight: Vector  # [1, width]
    bias: Vector  # [1, width]
    out: Written
    eps: float


@dataclass(frozen=True, slots=True)
class Linear(Op):
    """outs[i] = x @ weights[i].T + biases[i]: matrices that read the same input stand in one op."""

    x: Read
    weights: tuple[Matrix, ...]
    outs: tuple[Written, ...]
    biases: tuple[Vector | None, ...]


@dataclass(frozen=True, slots=True)
class Rope(Op):
    """out = x [N or R, H*D] with the first 2P elements of each head rotated by position.

    Pair i turns by position * frequencies[i] radians and is then multiplied by `magnitude`.
    """

    x: Reusable
    out: Written
    heads: int
    frequencies: tuple[float, ...]  # [P]
    style: RopeStyle
    magnitude: float = 1.0


@dataclass(frozen=True, slots=True)
class KVWrite(Op):
    """Store this batch's k [N, K*Dk] and v [N, K*Dv] at their positions in a KV layer."""

    k: ReadAll
    v: ReadAll
    layer: Layer


@dataclass(frozen=True, slots=True)
class Attention(Op):
    """out = softmax(scores) v over the sequence's stored positions up to the query's own.

    Scores s are q k^T * scale, or with a `softcap` c of more than 0 c * tanh(s / c).
    """

    q: Read  # [N, H*Dk], or [R, H*Dk]
    out: Written  # [N, H*Dv], or [R, H*Dv]
    layer: Layer
    heads: int
    scale: float
    softcap: float = 0.0


@dataclass(frozen=True, slots=True)
class Add(Op):
    """out = x + y."""

    x: Reusable
    y: Reusable
    out: Written


@dataclass(frozen=True, slots=True)
class Gated(Op):
    """out = activation(gate) * up."""

    gate: Reusable
    up: Read
    out: Written
    activation: Activation


@dataclass(frozen=True, slots=True)
class AllReduce(Op):
    """out = the sum of x over the ranks of a model that several devices share (see models/shard.py)."""

    x: Reusable
    out: Written


@dataclass(frozen=True, slots=True)
class Route(Op):
    """The experts of each row and what each one's result counts, from the router's logits x [N or R, E].

    Those with the k largest logits are chosen, the largest first, of two equal ones the lower number first.
    Their weights are the softmax of their own logits if `renormalise`, otherwise of all E.
    """

    x: Read
    chosen: Written  # [N or R, k], whole numbers
    weights: Written  # [N or R, k]
    renormalise: bool


@dataclass(frozen=True, slots=True)
class Experts(Op):
    """out = the sum over a row's experts e of weight * down[e](activation(gate[e] x) * up[e] x).

    It is added up in the order of the experts' numbers. Numbers of experts that the matrices do not have are
    passed over: the matrices begin with expert `first` of the model.
    """

    x: Read
    chosen: Read
    weights: Read
    gate: Matrix  # [E, F, width of x]
    up: Matrix  # [E, F, width of x]
    down: Matrix  # [E, width of x, F]
    out: Written
    activation: Activation
    first: int = 0


@dataclass(frozen=True, slots=True)
class Select(Op):
    """out[r] = x[rows[r]]: from here on only rows whose logits are wanted."""

    x: ReadAll
    out: Written


@dataclass(frozen=True, slots=True)
class Head(Op):
    """logits = x @ weight.T for x [R, width], handed to the sampler; the last op of a Program.

    With a `softcap` c of more than 0 logits l become c * tanh(l / c).
    """

    x: Read
    weight: Matrix
    softcap: float = 0.0


@dataclass(frozen=True, slots=True)
class Output(Op):
    """The rows x [R, width] are the step's result; the last op of a Program that gives no tokens."""

    x: Read


def numbers_in(op: Op, *wanted: Role) -> list[int]:
    """The numbers in the fields of these roles."""
    numbers: list[int] = []
    for name, role in op.roles.items():
        if role in wanted:
            entry = getattr(op, name)
            if isinstance(entry, tuple):
                numbers += [number for number in entry if number is not None]
            elif entry is not None:
                numbers.append(entry)
    return numbers


def renumbered(op: Op, numbers: Mapping[int, int], *changed: Role) -> Op:
    """The op with other numbers in the fields of these roles; a number that has no other stays."""
    changes: dict[str, Any] = {}
    for name, role in op.roles.items():
        if role in changed:
            old = getattr(op, name)
            new = tuple(numbers.get(n, n) for n in old) if isinstance(old, tuple) else numbers.get(old, old)
            if new != old:
                changes[name] = new
    return replace(op, **changes) if changes else op
