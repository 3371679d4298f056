"""How layers are grouped, and the one formula for the bytes of a sequence."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corral.models.cache import ENDLESS, CacheSpec, KVLayer, PagedGroup, StateGroup

PART = KVLayer(2, 64, 64).block_bytes


def spec(*layers):
    return CacheSpec.of(layers)


def gemma(layers, window=512):
    return [KVLayer(2, 64, 64, None if layer % 6 == 5 else window) for layer in range(layers)]


def test_layers_of_one_kind_are_one_group():
    assert spec(*[KVLayer(2, 64, 64)] * 4) == CacheSpec((PagedGroup(None, (0, 1, 2, 3), 0),), (4 * PART,))
    assert spec(*[KVLayer(2, 64, 64, 32)] * 2) == CacheSpec((PagedGroup(32, (0, 1), 0),), (2 * PART,))
    assert spec() == CacheSpec((), ())


@pytest.mark.parametrize(("layers", "size", "groups"), [(18, 3, 6), (26, 2, 13), (34, 1, 34), (48, 8, 6)])
def test_groups_of_gemmas_are_as_large_as_both_windows_allow(layers, size, groups):
    found = spec(*gemma(layers))
    assert len(found.groups) == groups and found.block_bytes == (size * PART,)
    assert {len(group.layers) for group in found.groups} == {size}
    assert sorted(layer for group in found.groups for layer in group.layers) == list(range(layers))
    windows = [layer.window for layer in gemma(layers)]
    assert all(windows[layer] == group.window for group in found.groups for layer in group.layers)


def test_layers_of_two_shapes_keep_their_windows_and_share_a_pool_where_sizes_meet():
    local, full = KVLayer(16, 256, 256, 1024), KVLayer(4, 512, 512)
    found = spec(*([local] * 5 + [full]) * 8)
    assert found.block_bytes == (4 * local.block_bytes,) == (8 * full.block_bytes,)
    assert [(group.window, len(group.layers)) for group in found.groups] == [(1024, 4)] * 10 + [(None, 8)]


def test_layers_whose_sizes_do_not_meet_have_pools_of_their_own():
    local, other, full = KVLayer(3, 64, 64, 100), KVLayer(3, 64, 64, 50), KVLayer(2, 48, 32)
    found = spec(local, local, full, other, other, full, other, other)
    assert found.groups == (
        PagedGroup(100, (0, 1), 0),
        PagedGroup(None, (2, 5), 1),
        PagedGroup(50, (3, 4), 0),
        PagedGroup(50, (6, 7), 0),
    )
    assert found.block_bytes == (2 * local.block_bytes, 2 * full.block_bytes)


def test_bytes_of_a_sequence_count_windows_chunks_and_both_sizes_of_a_head():
    local, full = KVLayer(1, 32, 32, 32), KVLayer(1, 40, 24)
    found = spec(*[local] * 5, full)
    assert found.bytes_needed(512, 1) == (512 // 16 + 5 * (2 + 1)) * 16 * 64 * 2
    assert found.bytes_needed(512, 65) == (512 // 16 + 5 * (2 + 1 + 4)) * 16 * 64 * 2
    assert found.bytes_needed(17, 65) == 6 * 2 * 16 * 64 * 2


def test_a_state_is_counted_with_the_copies_that_prefix_hits_start_from():
    mixed = CacheSpec((PagedGroup(None, (0,), 0),), (100, 7000), (StateGroup(256, 1),))
    assert mixed.blocks_needed(1000, 64) == [63, 1 + 3]
    assert mixed.bytes_needed(1000, 64) == 6300 + 4 * 7000
    assert mixed.capacity((63, 4), 64) == 1008 and mixed.capacity((63, 3), 64) == 752


def two_pools():
    return spec(*[KVLayer(3, 64, 64, 256)] * 5, KVLayer(2, 48, 32))


def test_memory_is_divided_so_that_the_longest_sequence_is_limited_by_all_pools_alike():
    found, chunk = two_pools(), 64
    for sequences in (1, 3, 10):
        memory = sequences * found.bytes_needed(4096, chunk)
        blocks = found.divide(memory, 4096, chunk)
        assert blocks == tuple(sequences * needed for needed in found.blocks_needed(4096, chunk))
        assert found.bytes_of(blocks) == memory


@given(st.integers(1 << 18, 1 << 23), st.integers(1, 5000), st.integers(1, 300))
def test_divided_memory_is_not_exceeded_nor_wasted_and_holds_what_fits_at_all(memory, tokens, chunk):
    found = two_pools()
    blocks = found.divide(memory, tokens, chunk)
    assert memory - sum(found.block_bytes) < found.bytes_of(blocks) <= memory
    capacity = found.capacity(blocks, chunk)
    fitting = [n for n in range(16, tokens + 16, 16) if found.bytes_needed(n, chunk) <= memory]
    assert not fitting or capacity >= fitting[-1]


def test_one_pool_takes_all_memory():
    found = spec(*gemma(18))
    assert found.divide(1000 * 3 * PART + 5, 32768, 256) == (1000,)


def test_capacity_is_endless_where_all_layers_have_windows_that_fit():
    windows = spec(*[KVLayer(1, 8, 8, 40)] * 2)
    assert windows.capacity((5,), 16) == ENDLESS
    assert windows.capacity((4,), 16) == 4 * 16
    assert spec(*gemma(6)).capacity((300,), 256) == 16 * (300 - 5 * (32 + 17))
