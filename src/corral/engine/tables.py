"""Blocks dealt out to sequences: a table for every group of layers; what no token sees any more goes back.

A block holds `block_size` positions of the layers of one group. Groups see the last `window` tokens, or all.
The tables of a sequence are equally long; what a group cannot see any more, or what a cached prefix never
brought, is a leading entry that nobody reads.
"""

from bisect import bisect_right
from collections.abc import Iterable, Iterator

from corral.engine.blocks import BlockPool, extend_digests
from corral.engine.sequence import Sequence

ENDLESS = 2**31 - 1  # positions are int32
NOWHERE = -1  # an entry without a block

Tables = list[list[int]]


def blocks_needed(windows: Iterable[int | None], tokens: int, chunk: int, block_size: int) -> int:
    """The most blocks held at a time while so many tokens of a sequence are computed, `chunk` at once."""
    every, total = -(-tokens // block_size), 0
    for window in windows:
        # The blocks that the first token of a chunk sees before its own, and those that the chunk may reach.
        reach = 1 + (chunk + block_size - 2) // block_size
        seen = every if window is None else -(-(window - 1) // block_size) + reach
        total += min(every, seen)
    return total


class BlockTables:
    """`chunk` = the most tokens of a sequence that a step computes."""

    def __init__(self, num_blocks: int, block_size: int, windows: tuple[int | None, ...], chunk: int):
        self.pool = BlockPool(num_blocks)
        self.block_size = block_size
        self.windows = windows
        self.chunk = chunk
        self._whole = [group for group, window in enumerate(windows) if window is None]
        self._windowed = [group for group, window in enumerate(windows) if window is not None]

    @property
    def capacity(self) -> int:
        """Tokens of a sequence that has all blocks to itself."""
        num_blocks, size = self.pool.num_blocks, self.block_size
        if self._needed(ENDLESS, self.chunk) <= num_blocks:
            return ENDLESS
        counts = range(num_blocks + 1)
        return size * (bisect_right(counts, num_blocks, key=lambda n: self._needed(n * size, self.chunk)) - 1)

    def still_needed(self, sequence: Sequence) -> int:
        """Blocks for the rest of a running sequence's known tokens, and one of each group to grow into."""
        chunk = min(sequence.pending, self.chunk)
        return self._needed(len(sequence.tokens) + self.block_size, chunk) - sequence.held

    def missing(self, sequence: Sequence, stop: int) -> int:
        """Blocks to take before the positions up to `stop` can be computed."""
        return len(self.windows) * (-(-stop // self.block_size) - len(sequence.tables[0]))

    def extend(self, sequence: Sequence, stop: int) -> None:
        """Take them; the caller has seen that they are there."""
        for _ in range(-(-stop // self.block_size) - len(sequence.tables[0])):
            for table in sequence.tables:
                table.append(self.pool.take())

    def advance(self, sequence: Sequence) -> None:
        """Let others find the blocks that were filled, and give back those that nothing sees any more."""
        full = sequence.computed // self.block_size
        if full <= sequence.published:
            return
        extend_digests(sequence.digests, sequence.tokens, full, self.block_size)
        for group, table in enumerate(sequence.tables):
            for index in range(sequence.published, full):
                self.pool.publish(table[index], (sequence.digests[index], group))
            first = self._first_seen(group, sequence.computed)
            self.pool.release(table[sequence.dropped[group] : first])
            table[sequence.dropped[group] : first] = [NOWHERE] * (first - sequence.dropped[group])
            sequence.dropped[group] = first
        sequence.published = full

    def find(self, sequence: Sequence) -> Tables:
        """Tables of the longest cached prefix; never of all tokens, as the last one's logits are wanted."""
        if not sequence.sharing:
            return [[] for _ in self.windows]
        count = (len(sequence.tokens) - 1) // self.block_size
        for group in self._whole:
            count = len(self.pool.find((digest, group) for digest in self._digests(sequence, count)))
        extend_digests(sequence.digests, sequence.tokens, count, self.block_size)
        digests = sequence.digests
        index = count  # the window groups need only what the next token sees: look backwards from it
        while index:
            index -= 1
            seeing = [
                group for group in self._windowed if self._first_seen(group, count * self.block_size) <= index
            ]
            if not seeing:
                break
            if not all(self.pool.find([(digests[index], group)]) for group in seeing):
                count = index
        return [self._prefix(group, digests[:count]) for group in range(len(self.windows))]

    def start(self, sequence: Sequence, prefix: Tables) -> None:
        """Begin a sequence with what `find` gave."""
        self.pool.share(_blocks_of(prefix))
        sequence.tables = prefix
        sequence.published = len(prefix[0])
        sequence.computed = sequence.published * self.block_size
        sequence.dropped = [self._first_seen(group, sequence.computed) for group in range(len(self.windows))]

    def needed_after(self, sequence: Sequence, prefix: Tables) -> int:
        """Free blocks that a waiting sequence's known tokens take when it starts with this prefix."""
        pending = len(sequence.tokens) - len(prefix[0]) * self.block_size
        blocks = list(_blocks_of(prefix))
        needed = self._needed(len(sequence.tokens), min(pending, self.chunk))
        return needed - len(blocks) + self.pool.idle(blocks)

    def release(self, sequence: Sequence) -> None:
        """Give all of a sequence's blocks back."""
        self.pool.release(list(_blocks_of(sequence.tables)))
        sequence.tables, sequence.dropped = [], []
        sequence.computed = sequence.published = 0

    def trim(self, sequence: Sequence) -> None:
        """Give back the blocks behind its computed tokens."""
        needed = -(-sequence.computed // self.block_size)
        for table in sequence.tables:
            self.pool.release(table[needed:])
            del table[needed:]

    def check(self, running: list[Sequence]) -> None:
        """Raise AssertionError unless the books balance; call between steps."""
        self.pool.check([*_blocks_of(sequence.tables)] for sequence in running)
        for sequence in running:
            assert len(sequence.tables) == len(sequence.dropped) == len(self.windows), (
                "a table for each group"
            )
            for group, (table, dropped) in enumerate(zip(sequence.tables, sequence.dropped, strict=True)):
                assert len(table) == -(-sequence.computed // self.block_size) > 0, "blocks of a sequence"
                assert dropped <= self._first_seen(group, sequence.computed), "a block is missing"
                assert all((block == NOWHERE) == (i < dropped) for i, block in enumerate(table)), (
                    "dropped blocks"
                )
            assert sequence.held <= self._needed(sequence.computed, self.chunk), "more blocks than counted on"

    def _needed(self, tokens: int, chunk: int) -> int:
        return blocks_needed(self.windows, tokens, chunk, self.block_size)

    def _first_seen(self, group: int, position: int) -> int:
        """The first block that a token at this position, or after it, sees."""
        window = self.windows[group]
        return 0 if window is None else max(0, position + 1 - window) // self.block_size

    def _prefix(self, group: int, digests: list[bytes]) -> list[int]:
        first = self._first_seen(group, len(digests) * self.block_size)
        return [NOWHERE] * first + self.pool.find((digest, group) for digest in digests[first:])

    def _digests(self, sequence: Sequence, count: int) -> Iterator[bytes]:
        for index in range(count):
            extend_digests(sequence.digests, sequence.tokens, index + 1, self.block_size)
            yield sequence.digests[index]


def _blocks_of(tables: Tables) -> Iterable[int]:
    """All blocks of a sequence, the ones of its first positions first."""
    return (block for column in zip(*tables, strict=True) for block in column if block != NOWHERE)
