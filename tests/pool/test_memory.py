import pytest

from corral.config import Settings
from corral.engine.protocol import Need
from corral.pool.memory import MemoryBudget, total_bytes
from corral.types import DeviceMemory

GIB = 2**30
ONE = 1000  # bytes of one full context


def need(weights=900, buffers=100, kv_context=ONE, kv_least=ONE // 4):
    return Need({"cpu": DeviceMemory(weights, buffers)}, kv_context, kv_least)


def kv(available, wanted=None, **settings):
    settings = Settings(**settings)
    return MemoryBudget.of(settings, available).kv_bytes(wanted or need(), settings)


def test_all_models_get_four_fifths_of_what_is_free_or_what_was_set():
    assert MemoryBudget.of(Settings(), 10 * GIB).total == 8 * GIB
    assert MemoryBudget.of(Settings(memory_budget=3 * GIB), 10 * GIB).total == 3 * GIB


def test_all_parts_on_all_devices_count():
    assert total_bytes({"cpu": DeviceMemory(1, 20, 300), "other": DeviceMemory(4000, 50000)}) == 54321


def test_kv_cache_is_at_most_what_all_sequences_can_use():
    assert kv(100 * GIB, max_sequences=3) == 3 * ONE


def test_kv_cache_is_at_most_a_quarter_of_what_is_free_or_set():
    assert kv(8 * ONE) == 2 * ONE
    assert kv(800 * ONE, memory_budget=8 * ONE) == 2 * ONE


def test_kv_cache_holds_one_full_context_where_half_of_the_memory_does():
    small = need(weights=10, buffers=0)
    assert kv(2 * ONE, small) == ONE
    assert kv(2 * ONE - 4, small) == (2 * ONE - 4) // 4


@pytest.mark.parametrize(
    ("left", "wanted"), [(9 * ONE, 5 * ONE), (3 * ONE, 3 * ONE), (ONE // 4 - 1, 5 * ONE)]
)
def test_kv_cache_takes_no_more_than_the_weights_leave_as_long_as_that_is_of_use(left, wanted):
    assert kv(0, need(weights=20 * ONE - left, buffers=0), memory_budget=20 * ONE) == wanted


def test_kv_cache_is_what_the_operator_says():
    assert kv(GIB, kv_cache=12345) == 12345
