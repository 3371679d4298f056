"""Puts the values of a graph into few buffers: one is free again after the last reading of its value."""

import heapq
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from corral.models.program import OPERANDS, Buffer, Op


@dataclass(frozen=True, slots=True)
class Value:
    """What an op made: rows of `width` floats, named by its number in the graph."""

    index: int
    name: str
    width: int
    selected: bool = False  # one row a logit row


def place_values(ops: Sequence[Op], values: Sequence[Value]) -> tuple[tuple[Op, ...], tuple[Buffer, ...]]:
    """The ops with buffers in place of values, and those buffers. A value is written once, then read."""
    last_read = {value: i for i, op in enumerate(ops) for value in _named(op, OPERANDS[type(op)].reads)}
    placement = _Placement(values)
    placed: list[Op] = []
    for i, op in enumerate(ops):
        operands = OPERANDS[type(op)]
        dying = [value for value in dict.fromkeys(_named(op, operands.reads)) if last_read[value] == i]
        reusable = [value for value in _named(op, operands.reuses) if value in dying]
        written = _named(op, operands.writes)
        for value in written:
            placement.place(value, reusable)
        placement.release(dying)
        placed.append(_renamed(op, placement.buffer_of))
        placement.release(value for value in written if value not in last_read)
    return tuple(placed), tuple(placement.buffers)


class _Placement:
    """Which buffer each value has, and which buffers are free."""

    def __init__(self, values: Sequence[Value]):
        self.values = values
        self.buffers: list[Buffer] = []
        self.buffer_of: dict[int, int] = {}
        self._free: defaultdict[tuple[int, bool], list[int]] = defaultdict(list)
        self._taken_over: set[int] = set()  # values whose buffer already has its next value

    def place(self, index: int, reusable: Iterable[int]) -> None:
        """Give a new value the buffer of a dying one that the op may overwrite, a free one, or a new one."""
        value = self.values[index]
        shape = (value.width, value.selected)
        for other in reusable:
            if other not in self._taken_over and self._shape(other) == shape:
                self._taken_over.add(other)
                self.buffer_of[index] = self.buffer_of[other]
                return
        if self._free[shape]:
            self.buffer_of[index] = heapq.heappop(self._free[shape])
            return
        self.buffer_of[index] = len(self.buffers)
        self.buffers.append(Buffer(value.name, value.width, value.selected))

    def release(self, indices: Iterable[int]) -> None:
        for index in indices:
            if index not in self._taken_over:
                heapq.heappush(self._free[self._shape(index)], self.buffer_of[index])

    def _shape(self, index: int) -> tuple[int, bool]:
        return self.values[index].width, self.values[index].selected


def _named(op: Op, fields: Iterable[str]) -> list[int]:
    """The numbers in these fields of an op."""
    numbers: list[int] = []
    for field in fields:
        entry: int | tuple[int, ...] = getattr(op, field)
        numbers.extend(entry if isinstance(entry, tuple) else (entry,))
    return numbers


def _renamed(op: Op, buffer_of: dict[int, int]) -> Op:
    operands = OPERANDS[type(op)]
    changes: dict[str, Any] = {}
    for field in operands.reads + operands.writes:
        entry: int | tuple[int, ...] = getattr(op, field)
        changes[field] = tuple(buffer_of[i] for i in entry) if isinstance(entry, tuple) else buffer_of[entry]
    return replace(op, **changes)
