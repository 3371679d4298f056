"""Small Programs for executor tests: inputs are rows of float tables, so that token n brings in row n."""

import numpy as np

from corral.models.cache import KVLayer
from corral.models.ops import Embed, Op
from corral.models.program import Buffer, Program
from corral.weights.qtensor import QTensor


def float_tensor(values: np.ndarray, name: str = "weight") -> QTensor:
    """A QTensor that holds these float32 values as they are."""
    values = np.ascontiguousarray(np.atleast_2d(values), np.float32)
    return QTensor(name, values.shape, "F32", (values.view(np.uint8),))


class ProgramBuilder:
    """Collects buffers, weights and ops; every method returns the number of what it added."""

    def __init__(self, vocab_size: int = 64):
        self.vocab_size = vocab_size
        self.buffers: list[Buffer] = []
        self.weights: list[QTensor] = []
        self.kv_layers: list[KVLayer] = []
        self.ops: list[Op] = []

    def buffer(self, width: int, selected: bool = False) -> int:
        self.buffers.append(Buffer(f"b{len(self.buffers)}", width, selected))
        return len(self.buffers) - 1

    def view(self, base: int, start: int, width: int) -> int:
        """Columns of a buffer that is no view itself."""
        selected = self.buffers[base].selected
        self.buffers.append(Buffer(f"b{len(self.buffers)}", width, selected, base, start))
        return len(self.buffers) - 1

    def weight(self, values: np.ndarray) -> int:
        return self.tensor(float_tensor(values, f"w{len(self.weights)}"))

    def tensor(self, tensor: QTensor) -> int:
        self.weights.append(tensor)
        return len(self.weights) - 1

    def kv_layer(
        self, kv_heads: int, key_size: int, window: int | None = None, value_size: int | None = None
    ) -> int:
        self.kv_layers.append(KVLayer(kv_heads, key_size, value_size or key_size, window))
        return len(self.kv_layers) - 1

    def table(self, values: np.ndarray, scale: float = 1.0) -> int:
        """A buffer whose row for token n is values[n] * scale."""
        out = self.buffer(values.shape[1])
        self.ops.append(Embed(self.weight(values), out, scale))
        return out

    def add(self, op: Op) -> None:
        self.ops.append(op)

    def build(self) -> Program:
        return Program(
            tuple(self.buffers),
            tuple(self.weights),
            tuple(self.kv_layers),
            tuple(self.ops),
            self.vocab_size,
            context_length=1 << 17,
        )
