import pytest

from corral.config import Settings
from corral.models.config import read_config
from corral.models.table import build_program
from corral.pool.memory import MemoryBudget, kv_bytes
from corral.types import BLOCK_SIZE
from corral.weights.gguf import open_gguf
from corral.weights.gguf_source import GGUFSource
from gguf_files import tiny_gemma3, tiny_llama

GIB = 2**30


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return read_config(open_gguf(tiny_llama(tmp_path_factory.mktemp("m") / "tiny.gguf")).metadata)


def kv(config, available, **settings):
    settings = Settings(**settings)
    return MemoryBudget.of(settings, available).need(config, 1000, settings).kv


def kv_of_a_program(program, tokens, chunk):
    return program.cache.bytes_needed(tokens, chunk)


@pytest.mark.parametrize("write", [tiny_llama, tiny_gemma3])
def test_kv_cache_is_counted_as_executors_count_it(write, tmp_path):
    with open_gguf(write(tmp_path / "tiny.gguf")) as file:
        config, program = read_config(file.metadata), build_program(GGUFSource(file))
    for tokens in (BLOCK_SIZE + 1, 512):
        wanted = kv_of_a_program(program, tokens, 24)
        assert kv(config, 1000 * GIB, context_length=tokens, max_sequences=1, batch_tokens=24) == wanted


def test_layers_with_a_window_need_no_more_than_the_window_and_a_step(tmp_path):
    with open_gguf(tiny_gemma3(tmp_path / "tiny.gguf", window=32)) as file:
        config = read_config(file.metadata)
    one = kv_bytes(config, BLOCK_SIZE, 1) // 6
    assert kv_bytes(config, 512, 1) == (512 // 16 + 5 * (2 + 1)) * one
    assert kv_bytes(config, 512, 65) == (512 // 16 + 5 * (2 + 1 + 4)) * one


def test_all_models_get_four_fifths_of_what_is_free_or_what_was_set():
    assert MemoryBudget.of(Settings(), 10 * GIB).total == 8 * GIB
    assert MemoryBudget.of(Settings(memory_budget=3 * GIB), 10 * GIB).total == 3 * GIB


def test_weights_count_as_the_file_and_a_tenth(config):
    assert MemoryBudget.of(Settings(), GIB).need(config, 1000, Settings()).weights == 1100


def test_kv_cache_is_at_most_what_all_sequences_can_use(config):
    one = kv_bytes(config, 512, 256)
    assert kv(config, 100 * GIB, max_sequences=3) == 3 * one
    assert kv(config, 100 * GIB, max_sequences=3, context_length=100) == 3 * one // 512 * 112


def test_kv_cache_is_at_most_a_quarter_of_what_is_free_or_set(config):
    one = kv_bytes(config, 512, 256)
    assert kv(config, 8 * one) == 2 * one
    assert kv(config, 800 * one, memory_budget=8 * one) == 2 * one


def test_kv_cache_holds_one_full_context_where_half_of_the_memory_does(config):
    one = kv_bytes(config, 512, 256)
    assert kv(config, 2 * one) == one
    assert kv(config, 2 * one - 4) == (2 * one - 4) // 4


def test_kv_cache_takes_no_more_than_the_weights_leave_as_long_as_that_is_enough(config):
    token = kv_bytes(config, 2048, 256) // 2048
    budget = MemoryBudget.of(Settings(memory_budget=20000 * token), 0)

    def need(left):
        return budget.need(config, (20000 - left) * token * 10 // 11, Settings())

    assert need(left=10000).kv == 5000 * token
    assert need(left=3000).total <= budget.total and need(left=3000).kv // token in (3000, 3001)
    assert need(left=1000).total > budget.total


def test_kv_cache_is_what_the_operator_says(config):
    assert kv(config, GIB, kv_cache=12345) == 12345
