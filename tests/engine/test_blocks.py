from array import array

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from corral.engine.blocks import BlockPool, extend_digests


def digests_of(tokens, block_size=4, salt=b""):
    digests = []
    extend_digests(digests, tokens, len(tokens) // block_size, block_size, salt)
    return digests


def names_of(tokens, block_size=4):
    return [(digest, 0) for digest in digests_of(tokens, block_size)]


def test_digest_of_a_block_depends_on_everything_before_it():
    assert digests_of([1, 2, 3, 4, 5, 6, 7, 8])[1] != digests_of([9, 2, 3, 4, 5, 6, 7, 8])[1]
    assert digests_of([1, 2, 3, 4, 5, 6, 7, 8]) == digests_of([1, 2, 3, 4, 5, 6, 7, 8, 9])
    assert digests_of([1, 2, 3, 4]) != digests_of([2, 1, 3, 4])


def test_digests_of_equal_tokens_differ_with_the_salt_and_no_salt_looks_like_tokens():
    tokens = list(range(12))
    chains = [digests_of(tokens, salt=salt) for salt in (b"", b"a", b"b", b"a" * 100)]
    assert len({digest for chain in chains for digest in chain}) == 4 * 3
    as_bytes = array("i", tokens[:4]).tobytes()
    assert not set(digests_of(tokens[4:], salt=as_bytes)) & set(digests_of(tokens))


def test_blank_blocks_are_taken_before_cached_ones_and_tails_before_heads():
    pool = BlockPool(4)
    head, tail = pool.take(), pool.take()
    names = names_of(list(range(8)))
    pool.publish(head, names[0])
    pool.publish(tail, names[1])
    pool.release([head, tail])
    assert (pool.free, pool.cached) == (4, 2)
    blank = {pool.take(), pool.take()}
    assert blank.isdisjoint({head, tail})
    assert pool.take() == tail
    assert pool.find(names) == [head]
    assert pool.take() == head
    assert pool.find(names) == []


def test_release_makes_the_least_recently_used_prefix_go_first():
    pool = BlockPool(2)
    first, second = pool.take(), pool.take()
    pool.publish(first, (b"first", 0))
    pool.publish(second, (b"second", 0))
    pool.release([first])
    pool.release([second])
    pool.share(pool.find([(b"first", 0)]))
    pool.release([first])
    assert pool.take() == second


def test_sharing_a_block_keeps_it_until_the_last_holder_lets_go():
    pool = BlockPool(1)
    block = pool.take()
    pool.publish(block, (b"x", 0))
    pool.share([block])
    pool.release([block])
    assert pool.free == 0
    pool.release([block])
    assert pool.free == 1


def test_publishing_an_equal_block_leaves_the_known_one():
    pool = BlockPool(2)
    first, second = pool.take(), pool.take()
    pool.publish(first, (b"x", 0))
    pool.publish(second, (b"x", 0))
    assert pool.find([(b"x", 0)]) == [first]
    pool.release([second])
    pool.check([[first]])


@pytest.mark.parametrize("spoil", ["_holders", "_blank", "_by_name", "_cached"])
def test_check_sees_broken_books(spoil):
    pool = BlockPool(3)
    held, cached = pool.take(), pool.take()
    pool.publish(cached, (b"x", 0))
    pool.release([cached])
    pool.check([[held]])
    if spoil == "_holders":
        pool._holders[held] = 2
    elif spoil == "_blank":
        pool._blank.append(held)
    elif spoil == "_by_name":
        pool._by_name[(b"y", 0)] = held
    else:
        pool._cached.clear()
    with pytest.raises(AssertionError):
        pool.check([[held]])


class Pools(RuleBasedStateMachine):
    """Sequences over two letters, so that prefixes meet often, in a pool that is always short."""

    def __init__(self):
        super().__init__()
        self.pool = BlockPool(7)
        self.tables: list[list[int]] = []

    @rule(tokens=st.lists(st.integers(0, 1), min_size=1, max_size=10))
    def enter(self, tokens):
        names = names_of(tokens, 2)
        hits = self.pool.find(names)
        missing = len(names) - len(hits)
        if missing + self.pool.idle(hits) > self.pool.free:
            return
        self.pool.share(hits)
        table = hits + [self.pool.take() for _ in range(missing)]
        for block, name in zip(table, names, strict=True):
            self.pool.publish(block, name)
        self.tables.append(table)

    @precondition(lambda self: self.pool.free)
    @rule()
    def take_blank(self):
        self.tables.append([self.pool.take()])

    @precondition(lambda self: self.tables)
    @rule(data=st.data())
    def leave(self, data):
        self.pool.release(self.tables.pop(data.draw(st.integers(0, len(self.tables) - 1))))

    @invariant()
    def books_balance(self):
        self.pool.check(self.tables)
        assert self.pool.used + self.pool.free == self.pool.num_blocks


TestPools = Pools.TestCase
TestPools.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


@given(st.lists(st.integers(0, 2**31 - 1), max_size=40), st.integers(1, 7))
def test_digests_grown_in_parts_equal_digests_made_at_once(tokens, block_size):
    whole, parts = [], []
    extend_digests(whole, tokens, len(tokens) // block_size, block_size)
    for count in range(len(tokens) // block_size + 1):
        extend_digests(parts, tokens, count, block_size)
    assert parts == whole
