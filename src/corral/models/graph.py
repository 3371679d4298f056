"""A model as its family describes it: values that are each written once, and the ops that make and read them.

A Graph is plain data. Passes (models/passes.py) make another Graph of one; placement (models/placement.py)
makes the Program that an executor runs.
"""

from dataclasses import dataclass

from corral.models.cache import KVLayer
from corral.models.ops import Op
from corral.weights.qtensor import QTensor


@dataclass(frozen=True, slots=True)
class Value:
    """Float32 rows of `width`: one a token or, if `selected`, one a row whose logits are wanted.

    A value with a `base` is a view: no op writes it, it is the columns from `start` of that value.
    """

    index: int
    name: str
    width: int
    selected: bool = False
    base: int | None = None
    start: int = 0


@dataclass(frozen=True, slots=True)
class Graph:
    """A whole model. Ops name values, weights and KV layers by their index here."""

    values: tuple[Value, ...]
    weights: tuple[QTensor, ...]
    kv_layers: tuple[KVLayer, ...]
    ops: tuple[Op, ...]
    vocab_size: int
    context_length: int
