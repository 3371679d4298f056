"""The language of architecture files: each method checks its tensors' shapes and appends an op."""

from collections.abc import Mapping
from dataclasses import dataclass

from corral.errors import CorruptModel, UnsupportedModel
from corral.models.placement import Value, place_values
from corral.models.program import (
    Activation,
    Add,
    Attention,
    Embed,
    Gated,
    Head,
    KVLayer,
    KVWrite,
    Linear,
    Op,
    Program,
    RmsNorm,
    Rope,
    RopeStyle,
    Select,
)
from corral.weights.gguf import GGUFFile
from corral.weights.qtensor import QTensor
from corral.weights.tensors import load_tensor

# Beginnings of names that a file may have and no op needs, with the reason why text comes out the same.
HARMLESS: Mapping[str, str] = {
    "v.": "an image encoder",
    "mm.": "projects images into the text model",
}
MAX_NAMED = 5  # of the tensors nobody used, how many an error names


@dataclass(frozen=True, slots=True)
class Rotation:
    """How a family's heads rotate by position (the fields of Rope that are the same for q and k)."""

    head_dim: int
    rotated: int
    theta: float
    style: RopeStyle
    scale: float = 1.0
    factors: int | None = None


class GraphBuilder:
    """Collects ops, the tensors they use and their KV layers; build() makes them a Program.

    Tensor names are given without `.weight`. A Value is what an op made; rope alone changes one in place.
    """

    def __init__(self, gguf: GGUFFile):
        self._gguf = gguf
        self._ops: list[Op] = []
        self._values: list[Value] = []
        self._weights: list[QTensor] = []
        self._index: dict[str, int] = {}
        self._kv_layers: list[KVLayer] = []

    def embed(self, name: str, vocab_size: int, width: int, scale: float = 1.0) -> Value:
        """A row of the tensor for every token, times scale."""
        out = self._value(name, width)
        self._ops.append(Embed(self._matrix(f"{name}.weight", vocab_size, width), out.index, scale))
        return out

    def rms_norm(self, x: Value, name: str, eps: float, heads: int = 1) -> Value:
        """x normalised over each of `heads` equal parts of a row, times the tensor."""
        weight = self._vector(f"{name}.weight", x.width // heads)
        out = self._value(name, x.width, x.selected)
        self._ops.append(RmsNorm(x.index, weight, out.index, eps, heads))
        return out

    def linear(self, x: Value, name: str, width: int) -> Value:
        """x times one matrix, plus its bias if the file has one."""
        (out,) = self.linears(x, {name: width})
        return out

    def linears(self, x: Value, widths: Mapping[str, int]) -> tuple[Value, ...]:
        """x times several matrices, given as {name: rows}, each plus its bias if the file has one."""
        weights = tuple(self._matrix(f"{name}.weight", width, x.width) for name, width in widths.items())
        biases = tuple(self.optional(f"{name}.bias", width) for name, width in widths.items())
        outs = tuple(self._value(name, width, x.selected) for name, width in widths.items())
        self._ops.append(Linear(x.index, weights, tuple(out.index for out in outs), biases))
        return outs

    def queries_keys_values(self, x: Value, widths: Mapping[str, int], last: bool) -> tuple[Value, ...]:
        """linears() of three matrices; in the last layer queries of the wanted rows alone."""
        if not last:
            return self.linears(x, widths)
        (query, width), *others = widths.items()
        keys_values = self.linears(x, dict(others))
        return self.linear(self.select(x), query, width), *keys_values

    def optional(self, name: str, width: int) -> int | None:
        """The number of a vector that a file may leave out; here the name is the tensor's whole name."""
        return self._vector(name, width) if name in self._gguf.tensors else None

    def rope(self, x: Value, heads: int, rotation: Rotation) -> None:
        """Rotate x in place."""
        if heads * rotation.head_dim != x.width:
            raise ValueError(f"{x.name}: {heads} heads of {rotation.head_dim} are not {x.width}")
        self._ops.append(
            Rope(
                x.index,
                heads,
                rotation.head_dim,
                rotation.rotated,
                rotation.theta,
                rotation.style,
                rotation.scale,
                rotation.factors,
            )
        )

    def attention(self, q: Value, k: Value, v: Value, layer: KVLayer, scale: float) -> Value:
        """Store k and v in a new KV layer, and let q, which may be of the wanted rows alone, attend to it."""
        if k.width != layer.kv_heads * layer.head_dim or v.width != k.width or q.width % layer.head_dim:
            raise ValueError(f"{q.name}: q, k and v do not fit {layer}")
        number = len(self._kv_layers)
        self._kv_layers.append(layer)
        out = self._value(f"attention.{number}", q.width, q.selected)
        self._ops.append(KVWrite(k.index, v.index, number))
        self._ops.append(Attention(q.index, out.index, number, q.width // layer.head_dim, scale))
        return out

    def add(self, x: Value, y: Value) -> Value:
        """x + y."""
        out = self._value(x.name, _common_width(x, y), x.selected)
        self._ops.append(Add(x.index, y.index, out.index))
        return out

    def gated(self, gate: Value, up: Value, activation: Activation) -> Value:
        """activation(gate) * up."""
        out = self._value(gate.name, _common_width(gate, up), gate.selected)
        self._ops.append(Gated(gate.index, up.index, out.index, activation))
        return out

    def select(self, x: Value) -> Value:
        """The rows of x whose logits are wanted."""
        out = self._value(x.name, x.width, selected=True)
        self._ops.append(Select(x.index, out.index))
        return out

    def head(self, x: Value, name: str, tied: str, vocab_size: int) -> None:
        """Logits from x: by the tensor, or by `tied` (the embedding) in a file without it."""
        chosen = name if f"{name}.weight" in self._gguf.tensors else tied
        self._ops.append(Head(x.index, self._matrix(f"{chosen}.weight", vocab_size, x.width)))

    def build(self, vocab_size: int, context_length: int) -> Program:
        """The finished Program. UnsupportedModel if the file has tensors that nothing used."""
        unused = [name for name in self._gguf.tensors if name not in self._index and not _is_harmless(name)]
        if unused:
            more = f" and {len(unused) - MAX_NAMED} more" if len(unused) > MAX_NAMED else ""
            raise UnsupportedModel(
                f"the model has tensors that this architecture does not use, and would answer wrongly "
                f"without them: {', '.join(unused[:MAX_NAMED])}{more}"
            )
        ops, buffers = place_values(self._ops, self._values)
        return Program(buffers, tuple(self._weights), tuple(self._kv_layers), ops, vocab_size, context_length)

    def _value(self, name: str, width: int, selected: bool = False) -> Value:
        value = Value(len(self._values), name, width, selected)
        self._values.append(value)
        return value

    def _matrix(self, name: str, rows: int, cols: int) -> int:
        return self._weight(name, (rows, cols))

    def _vector(self, name: str, width: int) -> int:
        index = self._weight(name, (width,))
        tensor = self._weights[index]
        if not tensor.is_float:
            raise UnsupportedModel(f"tensor '{name}' is {tensor.type_name}; F32, F16 or BF16 is needed here")
        return index

    def _weight(self, name: str, shape: tuple[int, ...]) -> int:
        """The tensor's number in the Program; one used twice is there once."""
        info = self._gguf.tensors.get(name)
        if info is None:
            raise CorruptModel(f"the tensor '{name}' is missing")
        if tuple(info.shape) != shape:
            raise CorruptModel(f"tensor '{name}' is {_by(info.shape)}; the metadata says {_by(shape)}")
        if name not in self._index:
            self._index[name] = len(self._weights)
            self._weights.append(load_tensor(self._gguf, name))
        return self._index[name]


def _common_width(x: Value, y: Value) -> int:
    if (x.width, x.selected) != (y.width, y.selected):
        raise ValueError(f"{x.name} [{x.width}] and {y.name} [{y.width}] have different shapes")
    return x.width


def _is_harmless(name: str) -> bool:
    return name.startswith(tuple(HARMLESS))


def _by(shape: tuple[int, ...]) -> str:
    return " x ".join(str(size) for size in shape)
