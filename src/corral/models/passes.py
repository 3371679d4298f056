"""Passes over a Graph: functions that give another Graph, which computes the same."""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from corral.models.graph import Graph, Value
from corral.models.ops import (
    READS,
    VALUES,
    WEIGHTS,
    Input,
    Linear,
    Op,
    Output,
    Role,
    Select,
    numbers_in,
    renumbered,
)

BY_ROW = {Role.READ, Role.REUSABLE}  # what an op reads to make some rows without the others


def compact(graph: Graph) -> Graph:
    """The graph without values, weights and KV layers that no op needs."""
    named = {number for op in graph.ops for number in numbers_in(op, *VALUES)}
    bases = {base for number in named if (base := graph.values[number].base) is not None}
    values = _numbering(named | bases)
    weights = _numbering(number for op in graph.ops for number in numbers_in(op, *WEIGHTS))
    layers = _numbering(number for op in graph.ops for number in numbers_in(op, Role.LAYER))
    ops = (renumbered(op, values, *VALUES) for op in graph.ops)
    ops = (renumbered(op, weights, *WEIGHTS) for op in ops)
    return replace(
        graph,
        values=tuple(_moved(graph.values[number], values) for number in values),
        weights=tuple(graph.weights[number] for number in weights),
        kv_layers=tuple(graph.kv_layers[number] for number in layers),
        ops=tuple(renumbered(op, layers, Role.LAYER) for op in ops),
    )


def _moved(value: Value, numbers: Mapping[int, int]) -> Value:
    index, base = numbers[value.index], None if value.base is None else numbers[value.base]
    return value if (index, base) == (value.index, value.base) else replace(value, index=index, base=base)


def _numbering(kept: Iterable[int]) -> dict[int, int]:
    """New numbers without gaps, in the old order."""
    return {old: new for new, old in enumerate(sorted(set(kept)))}


def narrow(graph: Graph) -> Graph:
    """Compute only the rows whose logits are wanted, from where on nothing needs the others.

    In a decoder that is from the last layer's queries on: keys and values are still stored for every token.
    """
    narrowing = _Narrowing(graph)
    for op in graph.ops:
        narrowing.emit(op)
    return replace(graph, values=tuple(narrowing.values), ops=tuple(narrowing.ops))


class _Narrowing:
    """Emits the ops of a graph again, those of which wanted rows suffice for these rows alone."""

    def __init__(self, graph: Graph):
        self._whole = _find_whole(graph)
        self._selected: dict[int, int] = {}  # the value of the wanted rows, by the value of all rows
        self.ops: list[Op] = []
        self.values = [
            value if value.selected or _root(value) in self._whole else replace(value, selected=True)
            for value in graph.values
        ]

    def emit(self, op: Op) -> None:
        if isinstance(op, Select):
            self._selected[op.out] = self._select(op.x)
        elif isinstance(op, Linear):
            for part in _split(op, [self.values[out].selected for out in op.outs]):
                self._append(part)
        else:
            self._append(op)

    def _append(self, op: Op) -> None:
        selected = any(self.values[value].selected for value in numbers_in(op, Role.WRITTEN))
        chosen = [x for x in numbers_in(op, *READS) if selected or self.values[x].selected]
        numbers = {x: self._select(x) for x in chosen}
        self.ops.append(renumbered(op, numbers, *READS) if numbers else op)

    def _select(self, x: int) -> int:
        """The value of the wanted rows of x; what selects them is emitted when they are first needed."""
        value = self.values[x]
        if not value.selected and x not in self._selected:
            self._selected[x] = len(self.values)
            self.values.append(Value(len(self.values), value.name, value.width, selected=True))
            self.ops.append(Select(x, self._selected[x]))
        return self._selected.get(x, x)


def _find_whole(graph: Graph) -> set[int]:
    """The values of which all rows are needed, or whose op can only make all; of a view, its base."""
    whole: set[int] = set()

    def roots(op: Op, *roles: Role) -> set[int]:
        return {_root(graph.values[number]) for number in numbers_in(op, *roles)}

    for op in reversed(graph.ops):
        by_row = BY_ROW.intersection(op.roles.values()) and Role.READ_ALL not in op.roles.values()
        made = roots(op, Role.WRITTEN)
        if not by_row:
            whole |= made
        if (not by_row or not whole.isdisjoint(made)) and not isinstance(op, Select):
            whole |= roots(op, *READS)
    return whole


def _root(value: Value) -> int:
    return value.index if value.base is None else value.base


def _split(op: Linear, selected: list[bool]) -> list[Linear]:
    """The matrices that need all rows in one op, those that need the wanted ones in another."""
    parts = []
    for wanted in (False, True):
        chosen = [i for i, kind in enumerate(selected) if kind is wanted]
        if chosen:
            parts.append(
                replace(
                    op,
                    weights=tuple(op.weights[i] for i in chosen),
                    outs=tuple(op.outs[i] for i in chosen),
                    biases=tuple(op.biases[i] for i in chosen),
                )
            )
    return parts


def cut(graph: Graph, layers: Sequence[int]) -> tuple[Graph, ...]:
    """Consecutive stages for as many devices, with so many KV layers each; the last one has the head.

    Every stage but the last ends in Output, of which a batch must want all rows, and the next one begins
    with Input. ValueError if the layers do not add up, or more than one value goes from one to the next.
    """
    if sum(layers) != len(graph.kv_layers) or min(layers, default=0) < 1:
        raise ValueError(f"{list(layers)} are not all of the {len(graph.kv_layers)} layers")
    firsts = itertools.accumulate(layers[:-1])
    places = [0, *(_place_before(graph, first) for first in firsts), len(graph.ops)]
    return tuple(_stage(graph, start, stop) for start, stop in itertools.pairwise(places))


def _place_before(graph: Graph, layer: int) -> int:
    """The last op before a KV layer's keys and values are made at which one value alone goes on."""
    stored = next(i for i, op in enumerate(graph.ops) if layer in numbers_in(op, Role.LAYER))
    for place in range(stored, 0, -1):
        if len(_going_on(graph, place)) == 1:
            return place
    raise ValueError(f"no place before layer {layer} where one value alone goes on")


def _going_on(graph: Graph, place: int) -> set[int]:
    """The values that ops before this place make and ops from it on read; of a view, its base."""
    made = {number for op in graph.ops[:place] for number in numbers_in(op, Role.WRITTEN)}
    read = {_root(graph.values[number]) for op in graph.ops[place:] for number in numbers_in(op, *READS)}
    return made & read


def _stage(graph: Graph, start: int, stop: int) -> Graph:
    values, ops = list(graph.values), list(graph.ops[start:stop])
    if start:
        (given,) = _going_on(graph, start)
        ops.insert(0, Input(given))
    if stop < len(graph.ops):
        (result,) = _going_on(graph, stop)
        values.append(replace(values[result], index=len(values), selected=True))
        ops += [Select(result, len(values) - 1), Output(len(values) - 1)]
    return compact(replace(graph, values=tuple(values), ops=tuple(ops)))
