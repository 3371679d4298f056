"""Cache specs for tests of tables and the scheduler, which know nothing of layers."""

from corral.engine.tables import BlockTables
from corral.models.cache import CacheSpec, PagedGroup
from corral.types import BLOCK_SIZE


def cache_of(windows, block_size=BLOCK_SIZE, pools=()):
    """A group for each window, all of one pool unless `pools` has the pool of each."""
    pools = pools or (0,) * len(windows)
    groups = [
        PagedGroup(window, (i,), pool) for i, (window, pool) in enumerate(zip(windows, pools, strict=True))
    ]
    return CacheSpec(tuple(groups), (1,) * (max(pools) + 1), block_size=block_size)


def tables_of(num_blocks, block_size, windows, chunk, pools=()):
    """BlockTables with so many blocks: a number for one pool, or one for each."""
    counts = (num_blocks,) if isinstance(num_blocks, int) else num_blocks
    return BlockTables(cache_of(windows, block_size, pools), counts, chunk)
