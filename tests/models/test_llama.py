import functools
from pathlib import Path

import dense
import numpy as np
import pytest
from checkpoint import read_weights, rewrite
from running import logprobs, random_tokens

from corral.models.ops import Attention, Embed, Head, Linear, Rope
from corral.models.table import build_program
from corral.types import BLOCK_SIZE
from corral.weights.gguf import open_gguf
from corral.weights.gguf_source import GGUFSource
from gguf_files import tiny_llama

SIZES = dense.Sizes(layers=2, heads=4, kv_heads=2, head_dim=16, eps=1e-5, theta=100000.0)
TOKENS = random_tokens(50, 300)
CLOSE = {"rtol": 0, "atol": 2e-4}


@pytest.mark.parametrize("tied", [True, False])
def test_forward_agrees_with_a_dense_float64_twin(tmp_path: Path, tied: bool) -> None:
    path = tiny_llama(tmp_path / "m.gguf", tied=tied, types=("Q4_1", "Q8_0", "F16", "BF16"))
    wanted = dense.llama(read_weights(path), SIZES, TOKENS, dense.rotate_interleaved)
    np.testing.assert_allclose(logprobs(path, TOKENS), wanted, **CLOSE)


def test_biases_are_added_where_the_file_has_them(tmp_path: Path) -> None:
    path = tiny_llama(tmp_path / "m.gguf")
    rng = np.random.default_rng(1)
    widths = {"attn_q": 64, "attn_k": 32, "attn_v": 32, "attn_output": 64, "ffn_gate": 128, "ffn_down": 64}
    biases = {f"blk.1.{name}.bias": rng.normal(0, 1, width).astype("f4") for name, width in widths.items()}
    path = rewrite(path, biases)
    wanted = dense.llama(read_weights(path), SIZES, TOKENS, dense.rotate_interleaved)
    np.testing.assert_allclose(logprobs(path, TOKENS), wanted, **CLOSE)


def test_rope_factors_divide_the_frequencies(tmp_path: Path) -> None:
    factors = np.linspace(1, 8, 8).astype(np.float32)
    path = rewrite(tiny_llama(tmp_path / "m.gguf"), {"rope_freqs.weight": factors})
    rotate = functools.partial(dense.rotate_interleaved, factors=factors)
    wanted = dense.llama(read_weights(path), SIZES, TOKENS, rotate)
    np.testing.assert_allclose(logprobs(path, TOKENS), wanted, **CLOSE)


@pytest.mark.parametrize("key", ["llama.rope.scaling.factor", "llama.rope.scale_linear"])
def test_linear_rope_scaling_divides_positions(tmp_path: Path, key: str) -> None:
    path = tiny_llama(tmp_path / "m.gguf", metadata={key: 4.0})
    rotate = functools.partial(dense.rotate_interleaved, scale=4.0)
    wanted = dense.llama(read_weights(path), SIZES, TOKENS, rotate)
    np.testing.assert_allclose(logprobs(path, TOKENS), wanted, **CLOSE)


def test_sliding_window_hides_older_positions(tmp_path: Path) -> None:
    path = tiny_llama(tmp_path / "m.gguf", metadata={"llama.attention.sliding_window": 20})
    wanted = dense.llama(read_weights(path), SIZES, TOKENS, dense.rotate_interleaved, window=20)
    np.testing.assert_allclose(logprobs(path, TOKENS), wanted, **CLOSE)


def test_heads_may_be_wider_than_hidden_over_heads(tmp_path: Path) -> None:
    path = tiny_llama(tmp_path / "m.gguf", heads=4, hidden=64)
    rng = np.random.default_rng(2)
    wide = {"attn_q": (128, 64), "attn_k": (64, 64), "attn_v": (64, 64), "attn_output": (64, 128)}
    tensors = {
        f"blk.{layer}.{name}.weight": rng.normal(0, 0.1, shape).astype(np.float32)
        for layer in range(2)
        for name, shape in wide.items()
    }
    lengths = ("llama.attention.key_length", "llama.attention.value_length", "llama.rope.dimension_count")
    path = rewrite(path, tensors, dict.fromkeys(lengths, 32))
    sizes = dense.Sizes(layers=2, heads=4, kv_heads=2, head_dim=32, eps=1e-5, theta=100000.0)
    wanted = dense.llama(read_weights(path), sizes, TOKENS, dense.rotate_interleaved)
    np.testing.assert_allclose(logprobs(path, TOKENS), wanted, **CLOSE)


def test_program_has_the_shape_of_the_architecture(tmp_path: Path) -> None:
    with open_gguf(tiny_llama(tmp_path / "m.gguf", layers=3)) as file:
        program = build_program(GGUFSource(file))
    assert len(program.kv_layers) == 3
    assert program.context_length == 512
    assert program.cache.block_bytes == (BLOCK_SIZE * 3 * 2 * 2 * 16 * 2,)
    assert isinstance(program.ops[0], Embed)
    assert isinstance(program.ops[-1], Head)
    assert sum(isinstance(op, Attention) for op in program.ops) == 3
    assert [len(op.weights) for op in program.ops if isinstance(op, Linear)] == [3, 1, 2, 1] * 2 + [
        2,
        1,
        1,
        2,
        1,
    ]
    wanted = tuple(100000.0 ** (-2.0 * i / 16) for i in range(8))
    assert {op.frequencies for op in program.ops if isinstance(op, Rope)} == {wanted}


def test_tied_head_is_the_embedding_held_once(tmp_path: Path) -> None:
    for tied in (True, False):
        with open_gguf(tiny_llama(tmp_path / f"{tied}.gguf", tied=tied)) as file:
            program = build_program(GGUFSource(file))
            embed, head = program.ops[0], program.ops[-1]
            assert isinstance(embed, Embed)
            assert isinstance(head, Head)
            assert (head.weight == embed.weight) is tied
            assert len(program.weights) == len(file.tensors)


def test_few_buffers_serve_any_number_of_layers(tmp_path: Path) -> None:
    counts = set()
    for layers in (2, 5):
        with open_gguf(tiny_llama(tmp_path / "m.gguf", layers=layers)) as file:
            counts.add(len(build_program(GGUFSource(file)).buffers))
    assert counts == {11}
