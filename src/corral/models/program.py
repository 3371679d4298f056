"""A model as an executor takes it: a flat list of ops over numbered buffers, weights and KV layers."""

from dataclasses import dataclass

from corral.models.cache import CacheSpec, KVLayer
from corral.models.ops import Op, Output
from corral.weights.qtensor import QTensor


@dataclass(frozen=True, slots=True)
class Buffer:
    """Float32 rows of `width`; `selected` = one row a logit row instead of one a token.

    With a `base` it has no memory of its own: it is the columns from `start` of that buffer's rows.
    """

    name: str
    width: int
    selected: bool = False
    base: int | None = None
    start: int = 0


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
    def output_width(self) -> int:
        """The width of the vectors that a step gives; 0 for a Program that gives tokens."""
        last = self.ops[-1] if self.ops else None
        return self.buffers[last.x].width if isinstance(last, Output) else 0

    @property
    def cache(self) -> CacheSpec:
        """What a sequence keeps in memory."""
        return CacheSpec.of(self.kv_layers)
