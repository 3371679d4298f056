"""A pool of KV blocks: who holds which, which free ones carry a reusable prefix, which is evicted first.

A full block is named by a digest of its tokens and of the block before it, and by its group of layers: equal
digests, equal prefixes. The first block's digest starts from a salt, so that sequences whose tokens are equal
but whose meaning is not (by an adapter, an image, a tenant) share nothing.
Free blocks are of two kinds: blank ones, taken first, and cached ones, taken oldest first.
"""

from array import array
from collections import Counter, OrderedDict
from collections.abc import Iterable
from hashlib import sha256

_DIGEST_BYTES = 24  # of SHA-256's 32: two prefixes of one name cost 2^96 tries

Name = tuple[bytes, int]  # digest and group


def extend_digests(
    digests: list[bytes], tokens: list[int], count: int, block_size: int, salt: bytes = b""
) -> None:
    """Lengthen `digests` in place to those of the first `count` blocks of `tokens`."""
    for index in range(len(digests), count):
        parent = digests[-1] if digests else _digest(salt)
        start = index * block_size
        digests.append(_digest(parent + array("i", tokens[start : start + block_size]).tobytes()))


def _digest(data: bytes) -> bytes:
    return sha256(data).digest()[:_DIGEST_BYTES]


class BlockPool:
    """Reference counts, the prefix cache and the free list of `num_blocks` blocks of one size."""

    def __init__(self, num_blocks: int):
        self.num_blocks = num_blocks
        self._holders = [0] * num_blocks
        self._names: list[Name | None] = [None] * num_blocks
        self._by_name: dict[Name, int] = {}
        self._blank = list(range(num_blocks - 1, -1, -1))  # a stack: memory that was never touched goes last
        self._cached: OrderedDict[int, None] = OrderedDict()  # free but reusable; the first is evicted first

    @property
    def free(self) -> int:
        """Blocks that can be taken, cached ones included."""
        return len(self._blank) + len(self._cached)

    @property
    def used(self) -> int:
        """Blocks that some sequence holds."""
        return self.num_blocks - self.free

    @property
    def cached(self) -> int:
        """Free blocks that hold a reusable prefix."""
        return len(self._cached)

    def take(self) -> int:
        """Allocate a block: a blank one, or else the oldest cached one is evicted. `free` must not be 0."""
        if self._blank:
            block = self._blank.pop()
        else:
            block, _ = self._cached.popitem(last=False)
            self._forget(block)
        self._holders[block] = 1
        return block

    def find(self, names: Iterable[Name]) -> list[int]:
        """The blocks of these names, up to the first that is not known; holds nothing yet."""
        found = []
        for name in names:
            block = self._by_name.get(name)
            if block is None:
                break
            found.append(block)
        return found

    def idle(self, blocks: Iterable[int]) -> int:
        """How many of these blocks nobody holds: sharing them makes `free` smaller by so many."""
        return sum(1 for block in blocks if not self._holders[block])

    def share(self, blocks: Iterable[int]) -> None:
        """Hold blocks that `find` gave."""
        for block in blocks:
            if not self._holders[block]:
                del self._cached[block]
            self._holders[block] += 1

    def publish(self, block: int, name: Name) -> None:
        """Let other sequences find a full, computed block by this name, unless another one has the name."""
        if self._names[block] is None and name not in self._by_name:
            self._names[block] = name
            self._by_name[name] = block

    def release(self, blocks: list[int]) -> None:
        """Give a sequence's blocks back; the last of them is evicted before the first."""
        for block in reversed(blocks):
            self._holders[block] -= 1
            if self._holders[block]:
                continue
            if self._names[block] is None:
                self._blank.append(block)
            else:
                self._cached[block] = None

    def _forget(self, block: int) -> None:
        name = self._names[block]
        assert name is not None, "a cached block has a name"
        del self._by_name[name]
        self._names[block] = None

    def check(self, tables: Iterable[list[int]]) -> None:
        """Raise AssertionError unless every count agrees with these tables, which are all that are held."""
        held = Counter(block for table in tables for block in table)
        assert all(self._holders[block] == count for block, count in held.items()), "reference counts"
        assert sum(self._holders) == held.total(), "a block is held by nobody"
        free = set(self._blank) | set(self._cached)
        assert len(free) == len(self._blank) + len(self._cached), "a block is free twice"
        assert not free & held.keys() and len(free) + len(held) == self.num_blocks, "free + used = all"
        named = {name: block for block, name in enumerate(self._names) if name is not None}
        assert named == self._by_name, "names"
        assert all(self._names[block] is None for block in self._blank), "a blank block has a name"
        assert all(self._names[block] is not None for block in self._cached), "a cached block has none"
