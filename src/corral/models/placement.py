"""Puts the values of a Graph into few buffers: one is free again after the last reading of what it holds."""

import heapq
from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import NamedTuple

from corral.models.graph import Graph, Value
from corral.models.ops import READS, VALUES, Role, numbers_in, renumbered
from corral.models.program import Buffer, Program


def place(graph: Graph) -> Program:
    """The Program of a graph: the same ops over buffers in place of values."""
    reads = [numbers_in(op, *READS) for op in graph.ops]
    last_read = {value: i for i, values in enumerate(reads) for value in values}
    memory = _Memory(graph.values, last_read)
    ops = []
    for i, op in enumerate(graph.ops):
        dying = [value for value in reads[i] if last_read[value] == i]
        reusable = [value for value in numbers_in(op, Role.REUSABLE) if value in dying]
        written = numbers_in(op, Role.WRITTEN)
        for value in written:
            memory.hold(value, reusable)
        numbers = {value: memory.buffer_of(value) for value in (*reads[i], *written)}
        ops.append(renumbered(op, numbers, *VALUES))
        memory.release([*dying, *(value for value in written if value not in last_read)])
    return Program(
        tuple(memory.buffers),
        graph.weights,
        graph.kv_layers,
        tuple(ops),
        graph.vocab_size,
        graph.context_length,
    )


class _Place(NamedTuple):
    """Columns of a buffer that has memory of its own."""

    buffer: int
    start: int
    width: int

    def overlaps(self, other: "_Place") -> bool:
        return (
            self.buffer == other.buffer
            and self.start < other.start + other.width
            and other.start < self.start + self.width
        )


class _Memory:
    """Where each value lies that is still to be read, and which buffers are free."""

    def __init__(self, values: tuple[Value, ...], last_read: dict[int, int]):
        self.buffers: list[Buffer] = []
        self._values = values
        self._views = defaultdict(list)  # of each value, those that are read
        for value in values:
            if value.base is not None and value.index in last_read:
                self._views[value.base].append(value)
        self._places: dict[int, _Place] = {}
        self._held = Counter[int]()  # how many values lie in each buffer
        self._numbers: dict[_Place, int] = {}  # of the buffers
        self._free: defaultdict[tuple[int, bool], list[int]] = defaultdict(list)

    def hold(self, index: int, reusable: Iterable[int]) -> None:
        """Find a place for a new value: that of a dying one which the op may overwrite, or a buffer."""
        value = self._values[index]
        place = next((self._places[x] for x in reusable if self._fits(value, x)), None) or self._take(value)
        self._put(index, place)
        for view in self._views[index]:
            self._put(view.index, _Place(place.buffer, place.start + view.start, view.width))

    def buffer_of(self, index: int) -> int:
        """The number of the buffer, or of the view of one, that a value lies in."""
        place = self._places[index]
        if place not in self._numbers:
            base = self.buffers[place.buffer]
            self._numbers[place] = self._add(
                Buffer(self._values[index].name, place.width, base.selected, place.buffer, place.start)
            )
        return self._numbers[place]

    def release(self, indices: Iterable[int]) -> None:
        """These values are read no more: their buffers are free if nothing else lies there."""
        for index in dict.fromkeys(indices):
            number = self._places.pop(index).buffer
            self._held[number] -= 1
            if not self._held[number]:
                buffer = self.buffers[number]
                heapq.heappush(self._free[buffer.width, buffer.selected], number)

    def _put(self, index: int, place: _Place) -> None:
        self._places[index] = place
        self._held[place.buffer] += 1

    def _fits(self, value: Value, other: int) -> bool:
        """Whether a value may lie where another does, with nothing else there."""
        place, selected = self._places[other], self._values[other].selected
        return (place.width, selected) == (value.width, value.selected) and not any(
            index != other and place.overlaps(held) for index, held in self._places.items()
        )

    def _take(self, value: Value) -> _Place:
        free = self._free[value.width, value.selected]
        number = heapq.heappop(free) if free else self._add(Buffer(value.name, value.width, value.selected))
        place = _Place(number, 0, value.width)
        self._numbers[place] = number
        return place

    def _add(self, buffer: Buffer) -> int:
        self.buffers.append(buffer)
        return len(self.buffers) - 1
