import pytest
from caches import cache_of, tables_of
from hypothesis import given
from hypothesis import strategies as st

from corral.engine.sequence import Sequence
from corral.engine.tables import NOWHERE
from corral.models.cache import ENDLESS

GEMMA = (512,) * 5 + (None,)  # Gemma 3 270M: groups of three layers


def compute(tables, sequence, chunk=4):
    """Compute all known tokens; gives the most blocks held on the way."""
    most = 0
    if not sequence.tables:
        tables.start(sequence, tables.find(sequence))
    while sequence.pending:
        stop = sequence.computed + min(chunk, sequence.pending)
        assert tables.fits(sequence, stop)
        tables.extend(sequence, stop)
        most = max(most, sequence.held)
        sequence.computed = stop
        tables.advance(sequence)
        tables.check([sequence])
    return most


def test_a_window_group_gives_back_what_the_next_token_does_not_see():
    tables = tables_of(20, 4, (8, None), 4)
    sequence = Sequence(1, [5] * 20)
    compute(tables, sequence)
    # Position 20 sees 13 to 20: blocks 3 and 4.
    assert [block == NOWHERE for block in sequence.tables[0]] == [True] * 3 + [False] * 2
    assert NOWHERE not in sequence.tables[1]
    assert (sequence.held, tables.used) == (7, 7)
    tables.release(sequence)
    assert (tables.used, tables.cached) == (0, 10)


def needed(windows, tokens, chunk, block_size=16):
    return cache_of(windows, block_size).blocks_needed(tokens, chunk)[0]


def test_a_long_gemma_sequence_takes_under_half_of_the_blocks():
    everything = needed((None,) * 6, 2000, 256)
    assert everything == 750
    assert needed(GEMMA, 2000, 1) == 125 + 5 * 33
    assert needed(GEMMA, 2000, 256) == 125 + 5 * 49
    tables = tables_of(everything, 16, GEMMA, 256)
    sequence = Sequence(1, list(range(2000)))
    assert compute(tables, sequence, 256) <= 125 + 5 * 49
    assert sequence.held <= 125 + 5 * 33
    assert tables.capacity == 16 * (750 - 5 * 49)


def test_capacity_without_a_layer_that_sees_everything_is_endless_or_that_of_its_blocks():
    assert tables_of(8, 4, (12,), 4).capacity == ENDLESS
    assert tables_of(4, 4, (12,), 4).capacity == 4 * 4
    assert tables_of(9, 4, (12, 12), 4).capacity == 4 * 4


@given(
    st.lists(st.none() | st.integers(1, 30), min_size=1, max_size=4),
    st.integers(1, 7),
    st.integers(1, 20),
    st.integers(1, 60),
)
def test_a_sequence_of_the_capacity_runs_in_any_chunks_and_a_longer_one_was_never_promised(
    windows, block_size, chunk, num_blocks
):
    tables = tables_of(num_blocks, block_size, tuple(windows), chunk)
    sequence = Sequence(1, [0] * min(tables.capacity, 300), sharing=False)
    assert tables.capacity >= num_blocks // len(windows) * block_size
    if sequence.tokens:
        most = compute(tables, sequence, chunk)
        assert most <= needed(windows, len(sequence.tokens), chunk, block_size) <= num_blocks


def finished(tables, tokens):
    sequence = Sequence(0, tokens)
    compute(tables, sequence)
    tables.release(sequence)


def hit(tables, tokens):
    """Blocks of the prefix that a new sequence of these tokens starts from."""
    return len(tables.find(Sequence(1, tokens))[0])


def test_a_prefix_is_found_while_what_its_next_token_sees_is_cached():
    tables = tables_of(100, 4, (8, 8, None), 4)
    tokens = list(range(41))
    finished(tables, tokens)
    assert [hit(tables, tokens[:length]) for length in (41, 40, 21, 5, 4)] == [10, 9, 5, 1, 0]
    prefix = tables.find(Sequence(1, tokens))
    assert [table.count(NOWHERE) for table in prefix] == [8, 8, 0]


def forget(tables, block):
    """Evict one cached block."""
    tables.pools[0]._cached.move_to_end(block, last=False)
    tables.pools[0]._forget(tables.pools[0]._cached.popitem(last=False)[0])
    tables.pools[0]._blank.append(block)


@pytest.mark.parametrize(
    ("group", "index", "wanted"),
    [(0, 0, 10), (0, 7, 10), (0, 8, 8), (1, 9, 9), (2, 9, 9), (2, 4, 4), (2, 0, 0)],
)
def test_a_lost_block_shortens_the_prefix_only_if_it_is_seen(group, index, wanted):
    tables = tables_of(100, 4, (8, 8, None), 4)
    tokens = list(range(41))
    finished(tables, tokens)
    forget(tables, tables.pools[0]._by_name[(_digests(tables, tokens)[index], group)])
    assert hit(tables, tokens) == wanted


def test_the_longest_prefix_is_found_over_a_gap_of_a_window_group():
    tables = tables_of(100, 4, (8, 12), 4)
    tokens = list(range(41))
    finished(tables, tokens)
    for group, index in [(0, 9), (1, 7), (0, 6)]:
        forget(tables, tables.pools[0]._by_name[(_digests(tables, tokens)[index], group)])
    # Of 9: block 7 of the second group; of 8: the same; of 7: block 6 of the first; 6 needs 4 and 5, 3 to 5.
    assert hit(tables, tokens) == 6


def _digests(tables, tokens):
    sequence = Sequence(2, tokens)
    tables.find(sequence)
    return sequence.digests


def test_a_sequence_goes_on_from_a_prefix_without_its_old_blocks():
    tables = tables_of(100, 4, (8, None), 4)
    tokens = list(range(41))
    finished(tables, tokens)
    again = Sequence(1, [*tokens, 7, 7])
    tables.start(again, tables.find(again))
    assert (again.computed, again.held) == (40, 10 + 2)
    compute(tables, again)
    tables.check([again])
    assert again.tables[0][:8] == [NOWHERE] * 8


def test_groups_of_two_pools_take_blocks_from_their_own():
    tables = tables_of((5, 12), 4, (8, None, None), 4, pools=(0, 1, 1))
    assert tables.capacity == 24
    sequence = Sequence(1, list(range(24)))
    compute(tables, sequence)
    assert [pool.used for pool in tables.pools] == [2, 12]
    assert [len(set(table) - {NOWHERE}) for table in sequence.tables] == [2, 6, 6]
    assert not tables.fits(sequence, 25) and tables.fits(sequence, 24)
    tables.release(sequence)
    assert (tables.used, tables.cached) == (0, 5 + 12)
    assert hit(tables, list(range(25))) == 6


@pytest.mark.parametrize("counts", [(4, 100), (100, 7)])
def test_the_shorter_pool_decides_who_is_admitted(counts):
    tables = tables_of(counts, 4, (8, None), 4, pools=(0, 1))
    first, second = Sequence(1, [1] * 14), Sequence(2, [2] * 14)
    assert tables.can_admit(first, tables.find(first), [])
    compute(tables, first)
    assert not tables.can_admit(second, tables.find(second), [first])
    tables.release(first)
    assert tables.can_admit(second, tables.find(second), [])
