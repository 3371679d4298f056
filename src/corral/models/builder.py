"""The language of family files: each method checks its tensors' shapes and appends ops to a Graph."""

from collections.abc import Mapping

import numpy as np

from corral.errors import CorruptModel, UnsupportedModel
from corral.models.cache import KVLayer
from corral.models.graph import Graph, Value
from corral.models.ops import (
    Activation,
    Add,
    Attention,
    Embed,
    Gated,
    Head,
    KVWrite,
    LayerNorm,
    Linear,
    Op,
    RmsNorm,
    Rope,
    Select,
)
from corral.models.rope import Rotation
from corral.weights.qtensor import QTensor
from corral.weights.source import ModelSource

# Beginnings of names that a model may have and no op needs, with the reason why text comes out the same.
HARMLESS: Mapping[str, str] = {
    "v.": "an image encoder",
    "mm.": "projects images into the text model",
}
MAX_NAMED = 5  # of the tensors nobody used, how many an error names


class GraphBuilder:
    """Collects values, ops, the tensors they use and their KV layers; `build` makes them a Graph.

    Tensor names are given without `.weight` except to `has`, `matrix`, `vector` and `floats`. A family
    makes an op that has no method here itself, with `value`, `matrix`, `vector` and `append`.
    """

    def __init__(self, source: ModelSource):
        self.source, self.fields = source, source.fields
        # The authors of some families store w - 1 of a norm's weight w.
        self._norm_offset = source.fields.number("norm.offset", 0, 1, default=0.0)
        self._values: list[Value] = []
        self._ops: list[Op] = []
        self._weights: list[QTensor] = []
        self._numbers: dict[tuple[str, float], int] = {}  # of the weights
        self._used: set[str] = set()
        self._kv_layers: list[KVLayer] = []

    def embed(self, name: str, vocab_size: int, width: int, scale: float = 1.0) -> Value:
        """A row of the tensor for every token, times scale."""
        out = self.value(name, width)
        self.append(Embed(self.matrix(f"{name}.weight", vocab_size, width), out.index, scale))
        return out

    def rms_norm(self, x: Value, name: str, eps: float, heads: int = 1) -> Value:
        """x normalised over each of `heads` equal parts of a row, times the tensor."""
        weight = self.vector(f"{name}.weight", x.width // heads, self._norm_offset)
        out = self.like(x, name)
        self.append(RmsNorm(x.index, weight, out.index, eps, heads))
        return out

    def layer_norm(self, x: Value, name: str, eps: float) -> Value:
        """Each row of x with mean 0 and variance 1, times the tensor, plus its bias."""
        weight = self.vector(f"{name}.weight", x.width)
        bias = self.vector(f"{name}.bias", x.width)
        out = self.like(x, name)
        self.append(LayerNorm(x.index, weight, bias, out.index, eps))
        return out

    def linear(self, x: Value, name: str, width: int) -> Value:
        """x times one matrix, plus its bias if the model has one."""
        (out,) = self.linears(x, {name: width})
        return out

    def linears(self, x: Value, widths: Mapping[str, int]) -> tuple[Value, ...]:
        """x times several matrices, given as {name: rows}, each plus its bias if the model has one."""
        weights = tuple(self.matrix(f"{name}.weight", width, x.width) for name, width in widths.items())
        biases = tuple(
            self.vector(f"{name}.bias", width) if self.has(f"{name}.bias") else None
            for name, width in widths.items()
        )
        outs = tuple(self.value(name, width, x.selected) for name, width in widths.items())
        self.append(Linear(x.index, weights, tuple(out.index for out in outs), biases))
        return outs

    def view(self, x: Value, start: int, width: int) -> Value:
        """The columns of x from `start`, without copying them."""
        if start < 0 or width < 1 or start + width > x.width:
            raise ValueError(f"{x.name} [{x.width}] has no columns {start} to {start + width}")
        base, first = (x.index, 0) if x.base is None else (x.base, x.start)
        return self._add(Value(len(self._values), x.name, width, x.selected, base, first + start))

    def rope(self, x: Value, heads: int, rotation: Rotation) -> Value:
        """x with each of its heads rotated by position."""
        if x.width % heads or x.width // heads < 2 * len(rotation.frequencies):
            raise ValueError(f"{x.name}: {heads} heads of {x.width} elements cannot rotate so far")
        out = self.like(x, x.name)
        self.append(Rope(x.index, out.index, heads, rotation.frequencies, rotation.style, rotation.magnitude))
        return out

    def attention(
        self, q: Value, k: Value, v: Value, layer: KVLayer, scale: float, softcap: float = 0.0
    ) -> Value:
        """Store k and v in a new KV layer, and let q attend to it."""
        sizes = layer.kv_heads * layer.key_size, layer.kv_heads * layer.value_size
        if (k.width, v.width) != sizes or q.width % layer.key_size:
            raise ValueError(f"{q.name}: q, k and v do not fit {layer}")
        number = len(self._kv_layers)
        self._kv_layers.append(layer)
        heads = q.width // layer.key_size
        out = self.value(f"attention.{number}", heads * layer.value_size, q.selected)
        self.append(KVWrite(k.index, v.index, number))
        self.append(Attention(q.index, out.index, number, heads, scale, softcap))
        return out

    def add(self, x: Value, y: Value) -> Value:
        """x + y."""
        out = self.like(x, x.name, y)
        self.append(Add(x.index, y.index, out.index))
        return out

    def gated(self, gate: Value, up: Value, activation: Activation) -> Value:
        """activation(gate) * up."""
        out = self.like(gate, gate.name, up)
        self.append(Gated(gate.index, up.index, out.index, activation))
        return out

    def head(self, x: Value, vocab_size: int, softcap: float = 0.0) -> None:
        """Logits of the wanted rows of x, by the tensor `output` or, in a model without, by the embedding."""
        name = "output.weight" if self.has("output.weight") else "token_embd.weight"
        self.append(Head(self.select(x).index, self.matrix(name, vocab_size, x.width), softcap))

    def select(self, x: Value) -> Value:
        """The wanted rows of x. Where they suffice before it, the pass `narrow` finds out."""
        out = self.value(x.name, x.width, selected=True)
        self.append(Select(x.index, out.index))
        return out

    def build(self, vocab_size: int, context_length: int) -> Graph:
        """The finished Graph. UnsupportedModel if the model has tensors or fields that nothing used."""
        unused = [
            name
            for name in self.source.tensors
            if name not in self._used and not name.startswith(tuple(HARMLESS))
        ]
        if unused:
            more = f" and {len(unused) - MAX_NAMED} more" if len(unused) > MAX_NAMED else ""
            raise UnsupportedModel(
                f"the model has tensors that this architecture does not use, and would answer wrongly "
                f"without them: {', '.join(unused[:MAX_NAMED])}{more}"
            )
        self.fields.refuse_unread()
        return Graph(
            tuple(self._values),
            tuple(self._weights),
            tuple(self._kv_layers),
            tuple(self._ops),
            vocab_size,
            context_length,
        )

    def value(self, name: str, width: int, selected: bool = False) -> Value:
        """A value that an op will write."""
        return self._add(Value(len(self._values), name, width, selected))

    def like(self, x: Value, name: str, *others: Value) -> Value:
        """A value of x's shape that an op will write; ValueError if `others` have another shape."""
        for y in others:
            if (x.width, x.selected) != (y.width, y.selected):
                raise ValueError(f"{x.name} [{x.width}] and {y.name} [{y.width}] have different shapes")
        return self.value(name, x.width, x.selected)

    def append(self, op: Op) -> None:
        """An op over values, weights and KV layers that are already there."""
        self._ops.append(op)

    def has(self, name: str) -> bool:
        """Whether the model has a tensor of this whole name."""
        return name in self.source.tensors

    def matrix(self, name: str, *shape: int) -> int:
        """The number of a weight [rows, cols], or [E, rows, cols]; a tensor used twice is there once."""
        self._check(name, shape)
        return self._number(name)

    def vector(self, name: str, width: int, plus: float = 0.0) -> int:
        """The number of a weight of plain floats [width], with `plus` added to each."""
        self._check(name, (width,))
        if plus:
            return self._number(name, plus)
        number = self._number(name)
        tensor = self._weights[number]
        if not tensor.is_float:
            raise UnsupportedModel(f"tensor '{name}' is {tensor.type_name}; F32, F16 or BF16 is needed here")
        return number

    def floats(self, name: str, width: int) -> tuple[float, ...] | None:
        """The numbers of a tensor [width] that the graph itself needs; None if the model does not have it."""
        if not self.has(name):
            return None
        self._check(name, (width,))
        return tuple(self.source.tensor(name).dequantize().ravel().tolist())

    def _add(self, value: Value) -> Value:
        self._values.append(value)
        return value

    def _number(self, name: str, plus: float = 0.0) -> int:
        if (name, plus) not in self._numbers:
            tensor = self.source.tensor(name)
            self._numbers[name, plus] = len(self._weights)
            self._weights.append(_moved(tensor, plus) if plus else tensor)
        return self._numbers[name, plus]

    def _check(self, name: str, shape: tuple[int, ...]) -> None:
        info = self.source.tensors.get(name)
        if info is None:
            raise CorruptModel(f"the tensor '{name}' is missing")
        if tuple(info.shape) != shape:
            raise CorruptModel(f"tensor '{name}' is {_by(info.shape)}; the metadata says {_by(shape)}")
        self._used.add(name)


def _moved(vector: QTensor, plus: float) -> QTensor:
    values = vector.dequantize() + np.float32(plus)
    return QTensor(vector.name, vector.shape, "F32", (values.view(np.uint8),))


def _by(shape: tuple[int, ...]) -> str:
    return " x ".join(str(size) for size in shape)
