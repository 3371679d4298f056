"""Block tables of sequences: one for every group of layers. Blocks that no token sees any more go back.

A block holds `block_size` positions of the layers of one group, and comes from the group's pool. The tables
of a sequence are equally long: entry i is the block of the positions from i * block_size on. Entries before
all that the group's window still sees, also those that a cached prefix came without, hold no block.
"""

from collections.abc import Iterator
from collections.abc import Sequence as Several
from dataclasses import dataclass

from corral.engine.blocks import BlockPool, extend_digests
from corral.engine.sequence import Sequence
from corral.models.cache import CacheSpec

NOWHERE = -1  # an entry without a block

Tables = list[list[int]]


@dataclass(frozen=True, slots=True)
class _Share:
    """A pool, its number, and the numbers of the groups whose blocks come from it."""

    number: int
    pool: BlockPool
    groups: tuple[int, ...]

    def blocks(self, tables: Tables) -> list[int]:
        """The pool's blocks in a sequence's tables, the ones of its first positions first."""
        columns = zip(*[tables[group] for group in self.groups], strict=True)
        return [block for column in columns for block in column if block != NOWHERE]

    def held(self, sequence: Sequence) -> int:
        """How many of the pool's blocks a sequence holds."""
        count = 0
        for group in self.groups:
            count += len(sequence.tables[group]) - sequence.dropped[group]
        return count


class BlockTables:
    """Allocates blocks to sequences from `num_blocks` of each pool of a cache.

    `chunk` = the most tokens of a sequence that a step computes.
    """

    def __init__(self, cache: CacheSpec, num_blocks: Several[int], chunk: int):
        self.cache, self.chunk = cache, chunk
        self.block_size = cache.block_size
        self.capacity = cache.capacity(
            num_blocks, chunk
        )  # tokens of a sequence that has all blocks to itself
        self.pools = [BlockPool(count) for count in num_blocks]
        self._shares = [
            _Share(number, pool, tuple(i for i, group in enumerate(cache.groups) if group.pool == number))
            for number, pool in enumerate(self.pools)
        ]
        self._pool_of = [self.pools[group.pool] for group in cache.groups]
        self._windows = [group.window for group in cache.groups]
        self._whole = [i for i, window in enumerate(self._windows) if window is None]
        self._windowed = [i for i, window in enumerate(self._windows) if window is not None]

    def fits(self, sequence: Sequence, stop: int) -> bool:
        """Whether enough blocks are free for a running sequence's positions up to `stop`."""
        more = -(-stop // self.block_size) - len(sequence.tables[0])
        return more <= 0 or all([more * len(share.groups) <= share.pool.free for share in self._shares])

    def extend(self, sequence: Sequence, stop: int) -> None:
        """Allocate the blocks of the positions up to `stop`, which must fit."""
        for _ in range(-(-stop // self.block_size) - len(sequence.tables[0])):
            for table, pool in zip(sequence.tables, self._pool_of, strict=True):
                table.append(pool.take())

    def can_admit(self, sequence: Sequence, prefix: Tables, running: Several[Sequence]) -> bool:
        """Whether a waiting sequence, starting from this prefix, fits beside what running ones still need."""
        return all(
            self._needed_from(share, sequence, prefix)
            + sum([self._still_needed(share, other) for other in running])
            <= share.pool.free
            for share in self._shares
        )

    def advance(self, sequence: Sequence) -> None:
        """Publish the blocks that were filled, and give back those that no token sees any more."""
        full = sequence.computed // self.block_size
        if full <= sequence.published:
            return
        self._extend_digests(sequence, full)
        for group, (table, pool) in enumerate(zip(sequence.tables, self._pool_of, strict=True)):
            for index in range(sequence.published, full):
                pool.publish(table[index], (sequence.digests[index], group))
            first = self._first_seen(group, sequence.computed)
            pool.release(table[sequence.dropped[group] : first])
            table[sequence.dropped[group] : first] = [NOWHERE] * (first - sequence.dropped[group])
            sequence.dropped[group] = first
        sequence.published = full

    def find(self, sequence: Sequence) -> Tables:
        """Tables of the longest cached prefix; never of all tokens, as the last one's logits are wanted."""
        if not sequence.sharing:
            return [[] for _ in self._windows]
        count = (len(sequence.tokens) - 1) // self.block_size
        for group in self._whole:
            count = len(self._pool_of[group].find((d, group) for d in self._digests(sequence, count)))
        self._extend_digests(sequence, count)
        digests = sequence.digests
        index = count  # the window groups need only what the next token sees: look backwards from it
        while index:
            index -= 1
            seeing = [
                group for group in self._windowed if self._first_seen(group, count * self.block_size) <= index
            ]
            if not seeing:
                break
            if not all(self._pool_of[group].find([(digests[index], group)]) for group in seeing):
                count = index
        return [self._prefix(group, digests[:count]) for group in range(len(self._windows))]

    def start(self, sequence: Sequence, prefix: Tables) -> None:
        """Begin a sequence with the prefix that `find` gave."""
        for share in self._shares:
            share.pool.share(share.blocks(prefix))
        sequence.tables = prefix
        sequence.published = len(prefix[0])
        sequence.computed = sequence.published * self.block_size
        sequence.dropped = [self._first_seen(group, sequence.computed) for group in range(len(self._windows))]

    def release(self, sequence: Sequence) -> None:
        """Give all of a sequence's blocks back."""
        for share in self._shares:
            share.pool.release(share.blocks(sequence.tables))
        sequence.tables, sequence.dropped = [], []
        sequence.computed = sequence.published = 0

    def trim(self, sequence: Sequence) -> None:
        """Give back the blocks behind a sequence's computed tokens."""
        needed = -(-sequence.computed // self.block_size)
        for table, pool in zip(sequence.tables, self._pool_of, strict=True):
            pool.release(table[needed:])
            del table[needed:]

    @property
    def used(self) -> int:
        """Blocks, of all pools, that some sequence holds."""
        return sum([pool.used for pool in self.pools])

    @property
    def cached(self) -> int:
        """Free blocks, of all pools, that hold a reusable prefix."""
        return sum([pool.cached for pool in self.pools])

    def check(self, running: list[Sequence]) -> None:
        """Raise AssertionError unless the books balance; call between steps."""
        for share in self._shares:
            share.pool.check(share.blocks(sequence.tables) for sequence in running)
        for sequence in running:
            assert len(sequence.tables) == len(sequence.dropped) == len(self._windows), (
                "a table for each group"
            )
            for group, (table, dropped) in enumerate(zip(sequence.tables, sequence.dropped, strict=True)):
                assert len(table) == -(-sequence.computed // self.block_size) > 0, "blocks of a sequence"
                assert dropped <= self._first_seen(group, sequence.computed), "a block is missing"
                assert all((block == NOWHERE) == (i < dropped) for i, block in enumerate(table)), (
                    "dropped blocks"
                )
            for share in self._shares:
                most = self.cache.pool_needed(share.number, sequence.computed, self.chunk)
                assert share.held(sequence) <= most, "more blocks than counted on"

    def _still_needed(self, share: _Share, sequence: Sequence) -> int:
        """Blocks for the rest of a running sequence's known tokens, and one of each group to grow into."""
        known, chunk = len(sequence.tokens), self.chunk
        if known - sequence.computed < chunk:
            chunk = known - sequence.computed
        needed = self.cache.pool_needed(share.number, known + self.block_size, chunk)
        return needed - share.held(sequence)

    def _needed_from(self, share: _Share, sequence: Sequence, prefix: Tables) -> int:
        """Free blocks that a waiting sequence's known tokens take when it starts from this prefix."""
        pending = len(sequence.tokens) - len(prefix[0]) * self.block_size
        needed = self.cache.pool_needed(share.number, len(sequence.tokens), min(pending, self.chunk))
        blocks = share.blocks(prefix)
        return needed - len(blocks) + share.pool.idle(blocks)

    def _first_seen(self, group: int, position: int) -> int:
        """The first block that a token at this position, or after it, sees."""
        window = self._windows[group]
        return 0 if window is None else max(0, position + 1 - window) // self.block_size

    def _prefix(self, group: int, digests: list[bytes]) -> list[int]:
        first = self._first_seen(group, len(digests) * self.block_size)
        return [NOWHERE] * first + self._pool_of[group].find((digest, group) for digest in digests[first:])

    def _digests(self, sequence: Sequence, count: int) -> Iterator[bytes]:
        for index in range(count):
            self._extend_digests(sequence, index + 1)
            yield sequence.digests[index]

    def _extend_digests(self, sequence: Sequence, count: int) -> None:
        extend_digests(sequence.digests, sequence.tokens, count, self.block_size, sequence.salt)
