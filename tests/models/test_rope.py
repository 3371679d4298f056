"""Every kind of rope against transformers 5.24: its ROPE_INIT_FUNCTIONS gave rope_kinds.json."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from memory_source import MemorySource

from corral.errors import CorruptModel, UnsupportedModel
from corral.models.builder import GraphBuilder
from corral.models.ops import RopeStyle
from corral.models.rope import Rotation, read_plain, read_rotation

KINDS = json.loads((Path(__file__).parent / "rope_kinds.json").read_text())
SCALING = "rope.scaling."


def read(
    fields: dict[str, Any], head_size: int = 16, context: int = 4096, **tensors: list[float]
) -> Rotation:
    arrays = {f"{name}.weight": np.array(values) for name, values in tensors.items()}
    g = GraphBuilder(MemorySource("llama", fields, arrays))
    plain = read_plain(g.fields, head_size, "rope.freq_base")
    rotation = read_rotation(g, plain, RopeStyle.HALF, context)
    g.fields.refuse_unread()
    return rotation


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind["name"])
def test_every_kind_gives_the_frequencies_of_transformers(kind: dict[str, Any]) -> None:
    rotation = read(kind["fields"], kind["head_size"], kind["context_length"])
    np.testing.assert_allclose(rotation.frequencies, kind["frequencies"], rtol=2e-6)
    assert rotation.magnitude == pytest.approx(kind["magnitude"], rel=1e-6)


def test_a_file_may_have_divisors_of_the_frequencies() -> None:
    divisors = [1.0, 1, 2, 4, 8, 8, 8, 1e30]
    plain = read({}).frequencies
    wanted = [frequency / divisor for frequency, divisor in zip(plain, divisors, strict=True)]
    assert read({}, rope_freqs=divisors).frequencies == pytest.approx(wanted, rel=1e-6)


def test_longrope_reads_its_divisors_from_tensors() -> None:
    kind = next(kind for kind in KINDS if kind["name"] == "longrope, long")
    fields = kind["fields"] | {SCALING + "attn_factor": 1.19}
    short, long = (fields.pop(f"{SCALING}{length}_factor") for length in ("short", "long"))
    del fields[SCALING + "type"]  # GGUF files of Phi do not say it
    rotation = read(fields, rope_factors_short=short, rope_factors_long=long)
    np.testing.assert_allclose(rotation.frequencies, kind["frequencies"], rtol=2e-6)
    assert rotation.magnitude == 1.19


@pytest.mark.parametrize("key", ["rope.scaling.factor", "rope.scale_linear"])
def test_linear_scaling_is_what_a_factor_alone_means(key: str) -> None:
    assert read({key: 4.0}).frequencies == tuple(frequency / 4 for frequency in read({}).frequencies)


def test_scaling_of_type_none_ignores_its_settings() -> None:
    off = {SCALING + "type": "none", SCALING + "factor": 4.0, SCALING + "finetuned": True}
    assert read(off) == read({})


def test_an_attention_factor_of_a_file_multiplies() -> None:
    assert read({SCALING + "attn_factor": 1.5}).magnitude == 1.5


@pytest.mark.parametrize(
    ("fields", "error", "name"),
    [
        ({SCALING + "type": "dynamic"}, UnsupportedModel, "scaling.type.*dynamic.*yarn"),
        ({SCALING + "type": "llama3", SCALING + "factor": 8.0}, CorruptModel, "low_freq_factor"),
        (
            {SCALING + "type": "llama3", SCALING + "low_freq_factor": 4, SCALING + "high_freq_factor": 4},
            CorruptModel,
            "high_freq_factor",
        ),
        ({SCALING + "type": "yarn", SCALING + "factor": math.nan}, CorruptModel, "factor"),
        ({SCALING + "type": "longrope"}, CorruptModel, "short_factor"),
        (
            {SCALING + "type": "longrope", SCALING + "short_factor": [1.0] * 7},
            CorruptModel,
            "short_factor.*8 pairs",
        ),
        (
            {SCALING + "type": "longrope", SCALING + "short_factor": [0.0] * 8},
            CorruptModel,
            "short_factor",
        ),
        ({SCALING + "type": "yarn", SCALING + "yarn_ext_factor": 0.5}, UnsupportedModel, "yarn_ext_factor"),
        ({"rope.dimension_sections": [2, 3, 3]}, UnsupportedModel, "dimension_sections"),
        ({"rope.dimension_count": 7}, CorruptModel, "dimension_count"),
        ({"rope.dimension_count": 18}, CorruptModel, "dimension_count"),
        ({"rope.freq_base": math.inf}, CorruptModel, "freq_base"),
        ({"rope.freq_base": 1.0}, CorruptModel, "freq_base"),
    ],
)
def test_what_is_wrong_or_not_known_is_named(
    fields: dict[str, Any], error: type[Exception], name: str
) -> None:
    with pytest.raises(error, match=name):
        read(fields)


@pytest.mark.parametrize("kind", ["yarn", "llama3", "longrope", "linear", "proportional"])
@pytest.mark.parametrize("value", [0.0, 1e-30, 1e5, 1.0])
def test_extreme_settings_give_frequencies_that_are_numbers(kind: str, value: float) -> None:
    names = ("factor", "yarn_beta_fast", "yarn_beta_slow", "attention_factor", "mscale", "mscale_all_dim")
    fields: dict[str, Any] = {SCALING + "type": kind, **{SCALING + name: value for name in names}}
    fields |= {SCALING + "low_freq_factor": value, SCALING + "high_freq_factor": 2 * value + 1}
    fields |= {SCALING + "short_factor": [1e-6] * 8, SCALING + "long_factor": [1e6] * 8}
    fields |= {"rope.freq_base": 2.0, SCALING + "original_context_length": 1}
    g = GraphBuilder(MemorySource("llama", fields))
    rotation = read_rotation(g, read_plain(g.fields, 16, "rope.freq_base"), RopeStyle.HALF, 1 << 20)
    assert all(map(math.isfinite, (*rotation.frequencies, rotation.magnitude)))
