"""A model as an executor takes it: a flat list of ops over numbered buffers, weights and KV layers."""

from dataclasses import dataclass

from corral.models.kv_groups import KVGroup, group_layers
from corral.models.ops import Op, Output
from corral.types import BLOCK_SIZE
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
class KVLayer:
    """A layer of the KV cache. window = how many last tokens a query sees (itself included); None = all."""

    kv_heads: int
    head_dim: int
    window: int | None = None


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
    def kv_groups(self) -> tuple[KVGroup, ...]:
        """The layers that share blocks: one group if shapes differ, as they cannot take each other's."""
        if len({(layer.kv_heads, layer.head_dim) for layer in self.kv_layers}) != 1:
            return (KVGroup(None, tuple(range(len(self.kv_layers)))),)
        return group_layers([layer.window for layer in self.kv_layers])

    def kv_block_bytes(self, element_size: int = 2) -> int:
        """Bytes of K and V in one block: BLOCK_SIZE positions of the layers of one group."""
        layers = [self.kv_layers[number] for number in self.kv_groups[0].layers]
        return BLOCK_SIZE * sum(2 * layer.kv_heads * layer.head_dim * element_size for layer in layers)
