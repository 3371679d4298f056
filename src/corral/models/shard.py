"""Tensor parallelism: the part of a Graph that one of several devices computes.

Queries, keys, values, gates and ups are split by the rows of their matrices, so that each rank has some
heads and some columns of the feed-forward; the matrices that read those are split by columns, and their
products are summed over the ranks. Of a mixture each rank has some whole experts. Everything else is computed
by every rank: norms and residuals, since they cost less than an exchange, and embedding and head, since the
sampler wants all logits of a row in one place.

Letter: W ranks.
"""

from dataclasses import replace

from corral.models.cache import KVLayer
from corral.models.graph import Graph, Value
from corral.models.ops import (
    VALUES,
    Add,
    AllReduce,
    Attention,
    Experts,
    Gated,
    KVWrite,
    Linear,
    Op,
    RmsNorm,
    Rope,
    Select,
    numbers_in,
)
from corral.models.passes import compact
from corral.weights.qtensor import QTensor

# Ops that treat all elements, or all heads, of a row alike. Any other op is computed whole by every rank.
BY_ELEMENT = (Add, Gated, Select)
BY_HEAD = (RmsNorm, Rope)


def shard(graph: Graph, rank: int, world: int) -> Graph:
    """What rank 0 to W - 1 computes. ValueError if heads or columns cannot be divided evenly among the ranks.

    Where there are fewer kv heads than ranks, several ranks keep the same one.
    """
    if not 0 <= rank < world:
        raise ValueError(f"rank {rank} of {world}")
    parts = _Parts(graph, world)
    sharding = _Sharding(graph, parts, rank)
    for op in graph.ops:
        sharding.emit(op)
    return compact(
        replace(
            graph,
            values=tuple(sharding.values),
            weights=tuple(sharding.weights),
            kv_layers=tuple(map(parts.layer_part, range(len(graph.kv_layers)))),
            ops=tuple(sharding.ops),
        )
    )


class _Parts:
    """Into how many parts each value is divided: W, 1 (every rank has all of it), or one for each kv head."""

    def __init__(self, graph: Graph, world: int):
        self.graph, self.world = graph, world
        self.shared_layers = set(range(len(graph.kv_layers)))  # those whose heads are divided
        self.of = dict.fromkeys(range(len(graph.values)), world)
        for op in reversed(graph.ops):
            if isinstance(op, Attention) and op.heads % world:
                raise ValueError(f"{op.heads} heads cannot be divided evenly among {world} ranks")
            self._propose(op)
        before = None
        while before != self.of:  # what one op needs whole, its neighbours may then need whole too
            before = dict(self.of)
            for op in graph.ops:
                self._restrict(op)

    def of_layer(self, number: int) -> int:
        """Into how many parts the heads of a KV layer are divided."""
        return _kv_parts(self.graph.kv_layers[number], self.world) if number in self.shared_layers else 1

    def layer_part(self, number: int) -> KVLayer:
        """One rank's part of a KV layer."""
        layer = self.graph.kv_layers[number]
        return replace(layer, kv_heads=layer.kv_heads // self.of_layer(number))

    def _propose(self, op: Op) -> None:
        if isinstance(op, KVWrite):
            self.of[op.k] = self.of[op.v] = self.of_layer(op.layer)
        elif isinstance(op, BY_HEAD):
            self.of[op.x] = self.of[op.out]

    def _restrict(self, op: Op) -> None:
        values = numbers_in(op, *VALUES)
        if any(self.graph.values[value].base is not None for value in values):
            self._keep_whole(*values)
        elif isinstance(op, Linear):
            if self.of[op.x] not in (1, self.world):
                self._keep_whole(op.x)
            if self.of[op.x] != 1:
                self._keep_whole(*op.outs)
        elif isinstance(op, KVWrite):
            if {self.of[op.k], self.of[op.v]} != {self.of_layer(op.layer)}:
                self.shared_layers.discard(op.layer)
                self._keep_whole(op.k, op.v)
        elif isinstance(op, Attention):
            if {self.of[op.q], self.of[op.out]} != {self.world} or op.layer not in self.shared_layers:
                self.shared_layers.discard(op.layer)
                self._keep_whole(op.q, op.out)
        elif not self._fits(op, {self.of[value] for value in values}):
            self._keep_whole(*values)

    def _fits(self, op: Op, parts: set[int]) -> bool:
        if isinstance(op, BY_HEAD):
            return len(parts) == 1 and op.heads % min(parts) == 0
        return isinstance(op, BY_ELEMENT) and len(parts) == 1

    def _keep_whole(self, *values: int) -> None:
        for value in values:
            base = self.graph.values[value].base
            self.of[value if base is None else base] = self.of[value] = 1


class _Sharding:
    """Emits the ops of a graph again, with one rank's part of their values and weights."""

    def __init__(self, graph: Graph, parts: _Parts, rank: int):
        self._graph, self._parts, self._rank = graph, parts, rank
        self.values = [replace(value, width=self._columns(value)[1]) for value in graph.values]
        self.weights = list(graph.weights)
        self.ops: list[Op] = []

    def emit(self, op: Op) -> None:
        if isinstance(op, Linear):
            divided = self._parts.of[op.x] != 1
            self._emit_columns(op) if divided else self._emit_rows(op)
        elif isinstance(op, Experts):
            self._emit_experts(op)
        elif isinstance(op, (*BY_HEAD, Attention)):
            self.ops.append(replace(op, heads=op.heads // self._parts.of[op.out]))
        else:
            self.ops.append(op)

    def _emit_rows(self, op: Linear) -> None:
        """Each matrix's rows for this rank's part of its product."""
        of, ranges = self._graph.weights, []
        for out in op.outs:
            start, width = self._columns(self._graph.values[out])
            ranges.append((start, start + width))
        matrices = zip(op.weights, ranges, strict=True)
        vectors = zip(op.biases, ranges, strict=True)
        self.ops.append(
            replace(
                op,
                weights=tuple(self._cut(weight, of[weight].rows_between(*rows)) for weight, rows in matrices),
                biases=tuple(
                    None if bias is None else self._cut(bias, of[bias].columns_between(*columns))
                    for bias, columns in vectors
                ),
            )
        )

    def _emit_columns(self, op: Linear) -> None:
        """Each matrix's columns for this rank's part of x, then the sums of all ranks. Rank 0 adds biases."""
        start, width = self._columns(self._graph.values[op.x])
        cuts = [self._graph.weights[weight].columns_between(start, start + width) for weight in op.weights]
        sums = [self._like(out) for out in op.outs]
        self.ops.append(
            replace(
                op,
                weights=tuple(map(self._cut, op.weights, cuts)),
                outs=tuple(sums),
                biases=op.biases if self._rank == 0 else (None,) * len(op.biases),
            )
        )
        self.ops += map(AllReduce, sums, op.outs)

    def _emit_experts(self, op: Experts) -> None:
        """This rank's experts, then the sums of all ranks."""
        experts, world = self._graph.weights[op.gate].experts, self._parts.world
        if experts < world:
            raise ValueError(f"{experts} experts cannot be divided among {world} ranks")
        first, stop = (experts * rank // world for rank in (self._rank, self._rank + 1))
        own = [
            self._graph.weights[weight].experts_between(first, stop) for weight in (op.gate, op.up, op.down)
        ]
        gate, up, down = map(self._add, own)
        partial = self._like(op.out)
        self.ops.append(replace(op, gate=gate, up=up, down=down, out=partial, first=op.first + first))
        self.ops.append(AllReduce(partial, op.out))

    def _columns(self, value: Value) -> tuple[int, int]:
        """The first column and the width of this rank's part of a value."""
        parts = self._parts.of[value.index]
        if value.width % parts:
            raise ValueError(
                f"{value.name}: {value.width} columns cannot be divided evenly among {parts} ranks"
            )
        width = value.width // parts
        return self._rank * parts // self._parts.world * width, width

    def _cut(self, number: int, cut: QTensor) -> int:
        """The number of a part of a weight."""
        return number if cut.shape == self._graph.weights[number].shape else self._add(cut)

    def _add(self, weight: QTensor) -> int:
        self.weights.append(weight)
        return len(self.weights) - 1

    def _like(self, number: int) -> int:
        value = self.values[number]
        self.values.append(replace(value, index=len(self.values)))
        return len(self.values) - 1


def _kv_parts(layer: KVLayer, world: int) -> int:
    if layer.kv_heads % world and world % layer.kv_heads:
        raise ValueError(f"{layer.kv_heads} kv heads cannot be divided evenly among {world} ranks")
    return min(layer.kv_heads, world)
