"""What a sequence keeps in memory, and the one formula for its bytes.

Keys and values lie in blocks: a block holds `block_size` positions of one group of layers. The layers of a
group see the same window, so that old blocks can be given back as a sequence moves on. Blocks of equal size
share a pool: where layers can be grouped so that one size fits all, no memory is divided between windows.
A state of fixed size, as recurrent layers keep it, is a block of a pool of its own.
"""

import functools
import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import le, mul

from corral.types import BLOCK_SIZE

ELEMENT_BYTES = 2  # of a key's or a value's element: float16
ENDLESS = 2**31 - 1  # tokens: positions are int32

_Kind = tuple[int | None, int]  # a layer's window, and the bytes of its part of a block


@dataclass(frozen=True, slots=True)
class KVLayer:
    """One layer's keys and values: sizes of a head in elements, and how many last tokens a query sees."""

    kv_heads: int
    key_size: int
    value_size: int
    window: int | None = None  # counts the query's own token; None = all tokens

    @property
    def block_bytes(self) -> int:
        """Bytes of the layer's part of a block."""
        return BLOCK_SIZE * self.kv_heads * (self.key_size + self.value_size) * ELEMENT_BYTES


@dataclass(frozen=True, slots=True)
class PagedGroup:
    """Layers, by number, that see the same window (None = all tokens) and share block tables."""

    window: int | None
    layers: tuple[int, ...]
    pool: int

    def blocks_needed(self, tokens: int, chunk: int, block_size: int) -> int:
        """The most blocks held at a time while `tokens` of a sequence are computed, `chunk` at once."""
        every = -(-tokens // block_size)
        if self.window is None:
            return every
        # What the first token of a chunk sees before its own block, and the blocks that the chunk may reach.
        seen = -(-(self.window - 1) // block_size) + 1 + (chunk + block_size - 2) // block_size
        return min(every, seen)


@dataclass(frozen=True, slots=True)
class StateGroup:
    """Layers whose state replaces itself; a copy after every `interval` tokens serves prefix hits."""

    interval: int
    pool: int

    def blocks_needed(self, tokens: int, chunk: int, block_size: int) -> int:
        """The state and its copies after `tokens` tokens."""
        return 1 + tokens // self.interval


@dataclass(frozen=True)
class CacheSpec:
    """The groups of a model's layers, and the pools that their blocks come from."""

    groups: tuple[PagedGroup, ...]
    block_bytes: tuple[int, ...]  # of a block of each pool
    states: tuple[StateGroup, ...] = ()
    block_size: int = BLOCK_SIZE  # positions of a paged group's block

    @classmethod
    def of(cls, layers: Sequence[KVLayer]) -> "CacheSpec":
        """As few pools, and then as few groups, as these layers allow."""
        kinds = [(layer.window, layer.block_bytes) for layer in layers]
        sizes = _block_sizes(Counter(kinds))
        pools = tuple(dict.fromkeys(sizes.values()))
        groups = []
        for kind, size in sizes.items():
            numbers = [number for number, other in enumerate(kinds) if other == kind]
            window, part = kind
            together = size // part
            groups += [
                PagedGroup(window, tuple(numbers[i : i + together]), pools.index(size))
                for i in range(0, len(numbers), together)
            ]
        return cls(tuple(groups), pools)

    def blocks_needed(self, tokens: int, chunk: int) -> list[int]:
        """The most blocks of each pool held at a time while `tokens` of a sequence are computed."""
        return [self.pool_needed(pool, tokens, chunk) for pool in range(len(self.block_bytes))]

    def pool_needed(self, pool: int, tokens: int, chunk: int) -> int:
        """The same of one pool."""
        needed = 0
        for group, count in self._kinds[pool]:
            needed += count * group.blocks_needed(tokens, chunk, self.block_size)
        return needed

    def bytes_of(self, num_blocks: Sequence[int]) -> int:
        """Bytes of so many blocks of each pool."""
        return sum(map(mul, num_blocks, self.block_bytes))

    def bytes_needed(self, tokens: int, chunk: int) -> int:
        """The most bytes held at a time while `tokens` of a sequence are computed, `chunk` at once."""
        return self.bytes_of(self.blocks_needed(tokens, chunk))

    def divide(self, memory: int, tokens: int, chunk: int) -> tuple[int, ...]:
        """Blocks of each pool that so many bytes hold, in the proportion in which a sequence needs them.

        The sequence has `tokens`, or as many as fit: so no pool of theirs runs out before the others.
        """
        whole = -(-tokens // self.block_size)
        fitting = _most(lambda n: self.bytes_needed(n * self.block_size, chunk) <= memory, whole)
        needed = self.blocks_needed(max(1, fitting) * self.block_size, chunk)
        total = self.bytes_of(needed)
        return tuple(memory * blocks // total for blocks in needed)

    def capacity(self, num_blocks: Sequence[int], chunk: int) -> int:
        """Tokens of the longest sequence that has so many blocks of each pool to itself."""

        def fits(tokens: int) -> bool:
            return all(map(le, self.blocks_needed(tokens, chunk), num_blocks))

        if fits(ENDLESS):
            return ENDLESS
        return self.block_size * _most(lambda n: fits(n * self.block_size), max(num_blocks))

    @functools.cached_property
    def _kinds(self) -> list[list[tuple[PagedGroup | StateGroup, int]]]:
        """Of each pool: one group for all that need as many blocks, and how many these are."""
        alike: list[PagedGroup | StateGroup] = [replace(group, layers=()) for group in self.groups]
        kinds = Counter(alike + list(self.states))
        return [
            [(group, count) for group, count in kinds.items() if group.pool == pool]
            for pool in range(len(self.block_bytes))
        ]


def _block_sizes(kinds: Mapping[_Kind, int]) -> dict[_Kind, int]:
    """Bytes of a block of each kind, given how many layers it has: one size for all kinds where there is one.

    A block holds the parts of a number of layers that divides their count, so its size is a multiple of one
    layer's part and divides the parts of all.
    """
    totals = {kind: count * kind[1] for kind, count in kinds.items()}
    common = math.gcd(*totals.values())
    if all(common % part == 0 for _, part in totals):
        return dict.fromkeys(totals, common)
    return {
        kind: math.gcd(*(total for (_, part), total in totals.items() if part == kind[1])) for kind in totals
    }


def _most(fits: Callable[[int], bool], limit: int) -> int:
    """The largest number up to `limit` that fits, as all smaller ones do; 0 if none does."""
    return bisect_left(range(1, limit + 1), True, key=lambda number: not fits(number))
