import math
from typing import Any

import pytest

from corral.errors import CorruptModel, UnsupportedModel
from corral.models.config import read_config

GOOD: dict[str, Any] = {
    "general.architecture": "llama",
    "llama.block_count": 30,
    "llama.context_length": 8192,
    "llama.embedding_length": 576,
    "llama.feed_forward_length": 1536,
    "llama.attention.head_count": 9,
    "llama.attention.head_count_kv": 3,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
    "llama.rope.freq_base": 100000.0,
    "llama.rope.dimension_count": 64,
    "tokenizer.ggml.tokens": ["a", "b", "c"],
}


def changed(key: str, value: Any) -> dict[str, Any]:
    """GOOD with one key changed; None leaves it out."""
    metadata = {**GOOD, f"llama.{key}": value}
    return {name: value for name, value in metadata.items() if value is not None}


def test_a_whole_config_is_read() -> None:
    config = read_config(GOOD)
    assert (config.layers, config.hidden, config.ffn) == (30, 576, 1536)
    assert (config.heads, config.kv_heads, config.head_dim, config.rotated) == (9, 3, 64, 64)
    assert (config.vocab_size, config.context_length) == (3, 8192)
    assert (config.rope_theta, config.rope_scale, config.window) == (100000.0, 1.0, None)


@pytest.mark.parametrize(
    ("key", "attribute", "value"),
    [
        ("attention.head_count_kv", "kv_heads", 9),
        ("rope.freq_base", "rope_theta", 10000.0),
        ("rope.dimension_count", "rotated", 64),
    ],
)
def test_missing_optional_keys_have_the_usual_defaults(key: str, attribute: str, value: float) -> None:
    assert getattr(read_config(changed(key, None)), attribute) == value


@pytest.mark.parametrize(
    "key",
    [
        "block_count",
        "context_length",
        "embedding_length",
        "feed_forward_length",
        "attention.head_count",
        "attention.layer_norm_rms_epsilon",
    ],
)
def test_missing_keys_are_named(key: str) -> None:
    with pytest.raises(CorruptModel, match=rf"llama\.{key}.*missing"):
        read_config(changed(key, None))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("block_count", 0),
        ("block_count", 2**32 - 1),
        ("block_count", "30"),
        ("block_count", True),
        ("embedding_length", 2**40),
        ("embedding_length", -1),
        ("feed_forward_length", 0),
        ("context_length", 2**63),
        ("context_length", 8192.0),
        ("attention.head_count", 7),
        ("attention.head_count", 0),
        ("attention.head_count_kv", 2),
        ("attention.head_count_kv", 18),
        ("attention.key_length", 10**6),
        ("attention.layer_norm_rms_epsilon", math.nan),
        ("attention.layer_norm_rms_epsilon", 1),
        ("rope.freq_base", math.inf),
        ("rope.freq_base", -1.0),
        ("rope.dimension_count", 66),
        ("rope.dimension_count", 7),
        ("rope.scaling.factor", "8"),
        ("rope.scaling.factor", -2.0),
        ("attention.sliding_window", -5),
        ("attention.sliding_window_pattern", [True, False]),
        ("attention.sliding_window_pattern", "all"),
        ("attention.head_count", []),
        ("attention.head_count", range(10**12)),
        ("attention.head_count_kv", memoryview(bytes(10**6))),
    ],
)
def test_wrong_values_are_named(key: str, value: Any) -> None:
    with pytest.raises(CorruptModel, match=rf"llama\.{key}"):
        read_config(changed(key, value))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("attention.head_count_kv", [3] * 29 + [9]),
        ("feed_forward_length", [1536, 3072]),
        ("attention.key_length", 63),
        ("attention.value_length", 32),
        ("rope.scaling.type", "yarn"),
        ("rope.scaling.attn_factor", 1.5),
    ],
)
def test_what_no_op_can_do_is_unsupported_and_named(key: str, value: Any) -> None:
    with pytest.raises(UnsupportedModel, match=rf"llama\.{key}"):
        read_config(changed(key, value))


def test_equal_values_for_each_layer_are_one_value() -> None:
    assert read_config(changed("attention.head_count_kv", [3] * 30)).kv_heads == 3


def test_scaling_type_none_ignores_the_factor() -> None:
    metadata = changed("rope.scaling.factor", 4.0)
    assert read_config(metadata).rope_scale == 4.0
    assert read_config({**metadata, "llama.rope.scaling.type": "none"}).rope_scale == 1.0


@pytest.mark.parametrize("tokens", [[], "text", 5, range(2**40)])
def test_an_impossible_vocabulary_is_named(tokens: object) -> None:
    with pytest.raises(CorruptModel, match=r"tokenizer\.ggml\.tokens"):
        read_config({**GOOD, "tokenizer.ggml.tokens": tokens})


def test_vocabulary_size_is_the_models_own_without_a_tokeniser() -> None:
    metadata = {**changed("vocab_size", 49152), "tokenizer.ggml.tokens": None}
    assert read_config(metadata).vocab_size == 49152


@pytest.mark.parametrize("value", [None, "", 3])
def test_a_file_without_an_architecture_says_so(value: object) -> None:
    with pytest.raises(CorruptModel, match=r"general\.architecture"):
        read_config({**GOOD, "general.architecture": value})
