from pathlib import Path

import dense
import numpy as np
import pytest
from checkpoint import read_weights
from running import logprobs, random_tokens

from corral.models.ops import Attention, Rope, RopeStyle
from corral.models.program import Program
from corral.models.table import build_program
from corral.weights.gguf import open_gguf
from corral.weights.gguf_source import GGUFSource
from gguf_files import tiny_gemma3

SIZES = dense.Sizes(layers=7, heads=2, kv_heads=1, head_dim=32, eps=1e-6, theta=1000000.0)
TOKENS = random_tokens(100, 300)  # three windows
CLOSE = {"rtol": 0, "atol": 5e-4}


def built(path: Path) -> Program:
    with open_gguf(path) as file:
        return build_program(GGUFSource(file))


def base_of(op: Rope) -> float:
    """What the second frequency of heads of 32 is a power of."""
    return round(op.frequencies[1] ** (-32 / 2), 3)


def test_forward_agrees_with_a_dense_float64_twin(tmp_path: Path) -> None:
    path = tiny_gemma3(tmp_path / "m.gguf", layers=7, window=32)
    wanted = dense.gemma3(read_weights(path), SIZES, TOKENS, window=32)
    np.testing.assert_allclose(logprobs(path, TOKENS), wanted, **CLOSE)


def test_rope_scaling_stretches_global_layers_only(tmp_path: Path) -> None:
    stretched = {"gemma3.rope.scaling.type": "linear", "gemma3.rope.scaling.factor": 8.0}
    path = tiny_gemma3(tmp_path / "m.gguf", layers=7, window=32, metadata=stretched)
    wanted = dense.gemma3(read_weights(path), SIZES, TOKENS, window=32, stretch=8.0)
    np.testing.assert_allclose(logprobs(path, TOKENS), wanted, **CLOSE)
    # The second pair's frequencies tell base and scale apart.
    local, stretched_global = [1.0, 10000.0 ** (-2 / 32)], [1 / 8, 1000000.0 ** (-2 / 32) / 8]
    turns = [list(op.frequencies[:2]) for op in built(path).ops if isinstance(op, Rope)]
    assert turns == [local] * 10 + [stretched_global] * 2 + [local] * 2


def test_every_sixth_layer_is_global(tmp_path: Path) -> None:
    with open_gguf(tiny_gemma3(tmp_path / "m.gguf", layers=13, window=32)) as file:
        program = build_program(GGUFSource(file))
    windows = [layer.window for layer in program.kv_layers]
    assert windows == ([32] * 5 + [None]) * 2 + [32]
    ropes = [op for op in program.ops if isinstance(op, Rope)]
    assert [base_of(op) for op in ropes[::2]] == ([10000.0] * 5 + [1000000.0]) * 2 + [10000.0]
    assert {op.style for op in ropes} == {RopeStyle.HALF}


@pytest.mark.parametrize(
    ("pattern", "wanted"), [(2, [32, None, 32, None]), ([True, False, False, True], [32, None, None, 32])]
)
def test_the_file_may_say_which_layers_are_local(tmp_path: Path, pattern: object, wanted: list) -> None:
    key = "gemma3.attention.sliding_window_pattern"
    with open_gguf(tiny_gemma3(tmp_path / "m.gguf", layers=4, metadata={key: pattern})) as file:
        assert [layer.window for layer in build_program(GGUFSource(file)).kv_layers] == wanted


def test_no_window_makes_every_layer_global(tmp_path: Path) -> None:
    path = tiny_gemma3(tmp_path / "m.gguf", metadata={"gemma3.attention.sliding_window": None})
    with open_gguf(path) as file:
        program = build_program(GGUFSource(file))
    assert {layer.window for layer in program.kv_layers} == {None}
    assert {base_of(op) for op in program.ops if isinstance(op, Rope)} == {1000000.0}


def test_ollama_names_of_rope_bases_are_read(tmp_path: Path) -> None:
    names = {
        "gemma3.rope.freq_base": None,
        "gemma3.rope.global.freq_base": 2e6,
        "gemma3.rope.local.freq_base": 3e4,
    }
    with open_gguf(tiny_gemma3(tmp_path / "m.gguf", metadata=names)) as file:
        bases = [base_of(op) for op in build_program(GGUFSource(file)).ops if isinstance(op, Rope)]
    assert bases == [3e4] * 10 + [2e6] * 2


@pytest.mark.parametrize(("layers", "query_size"), [(6, 32), (62, 64 // 4)])
def test_attention_scale_is_by_head_size_except_in_the_27b(
    tmp_path: Path, layers: int, query_size: int
) -> None:
    with open_gguf(tiny_gemma3(tmp_path / "m.gguf", layers=layers, heads=4)) as file:
        scales = {op.scale for op in build_program(GGUFSource(file)).ops if isinstance(op, Attention)}
    assert scales == {query_size**-0.5}
