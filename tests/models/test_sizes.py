import math
from typing import Any

import pytest

from corral.errors import CorruptModel, UnsupportedModel
from corral.models.sizes import Sizes, read_sizes, read_windows
from corral.weights.fields import Fields

GOOD: dict[str, Any] = {
    "llama.block_count": 30,
    "llama.context_length": 8192,
    "llama.embedding_length": 576,
    "llama.feed_forward_length": 1536,
    "llama.attention.head_count": 9,
    "llama.attention.head_count_kv": 3,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
    "llama.vocab_size": 49152,
}


def changed(key: str, value: Any) -> Fields:
    """GOOD with one field changed; None leaves it out."""
    values = {**GOOD, f"llama.{key}": value}
    return Fields({name: value for name, value in values.items() if value is not None}, "llama.")


def test_all_sizes_are_read() -> None:
    assert read_sizes(Fields(GOOD, "llama.")) == Sizes(30, 576, 1536, 9, 3, 64, 49152, 8192, 1e-5)


def test_every_head_has_keys_and_values_of_its_own_unless_the_model_says_less() -> None:
    assert read_sizes(changed("attention.head_count_kv", None)).kv_heads == 9


@pytest.mark.parametrize("key", [key[len("llama.") :] for key in GOOD if not key.endswith("_kv")])
def test_missing_fields_are_named(key: str) -> None:
    with pytest.raises(CorruptModel, match=rf"llama\.{key}.*missing"):
        read_sizes(changed(key, None))


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
        ("vocab_size", 0),
        ("vocab_size", 2**40),
        ("attention.head_count", 7),
        ("attention.head_count", 0),
        ("attention.head_count", []),
        ("attention.head_count", range(10**12)),
        ("attention.head_count_kv", 2),
        ("attention.head_count_kv", 18),
        ("attention.head_count_kv", memoryview(bytes(10**6))),
        ("attention.key_length", 10**6),
        ("attention.layer_norm_rms_epsilon", math.nan),
        ("attention.layer_norm_rms_epsilon", 1),
    ],
)
def test_wrong_sizes_are_named(key: str, value: Any) -> None:
    with pytest.raises(CorruptModel, match=rf"llama\.{key}"):
        read_sizes(changed(key, value))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("attention.head_count_kv", [3] * 29 + [9]),
        ("feed_forward_length", [1536, 3072]),
        ("attention.key_length", 63),
        ("attention.value_length", 32),
    ],
)
def test_sizes_that_no_op_takes_are_unsupported_and_named(key: str, value: Any) -> None:
    with pytest.raises(UnsupportedModel, match=rf"llama\.{key}"):
        read_sizes(changed(key, value))


def test_equal_values_for_each_layer_are_one_value() -> None:
    assert read_sizes(changed("attention.head_count_kv", [3] * 30)).kv_heads == 3


def windows(**fields: Any) -> tuple[int | None, ...]:
    return read_windows(Fields({f"attention.{name}": value for name, value in fields.items()}), 4, every=2)


def test_every_nth_layer_sees_everything_or_each_layer_says_what_it_sees() -> None:
    assert windows() == (None,) * 4
    assert windows(sliding_window=8) == (8, None, 8, None)
    assert windows(sliding_window=8, sliding_window_pattern=4) == (8, 8, 8, None)
    assert windows(sliding_window=8, sliding_window_pattern=0) == (8,) * 4
    assert windows(sliding_window=8, sliding_window_pattern=[1, 0, 0, 1]) == (8, None, None, 8)


@pytest.mark.parametrize(
    "fields",
    [
        {"sliding_window": -5},
        {"sliding_window_pattern": [True, False]},
        {"sliding_window_pattern": "all"},
        {"sliding_window_pattern": [None] * 4},
    ],
)
def test_wrong_windows_are_named(fields: dict[str, Any]) -> None:
    with pytest.raises(CorruptModel, match=next(iter(fields))):
        windows(**fields)
