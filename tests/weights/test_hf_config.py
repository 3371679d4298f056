"""A Hugging Face configuration by canonical names."""

from typing import Any

import pytest

from corral.errors import CorruptModel, UnsupportedModel
from corral.weights.fields import Fields
from corral.weights.hf_config import SPELLING, canonical_fields, is_meaningful, text_config

HEADS = {"hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 4}


def group(config: dict[str, Any], beginning: str) -> dict[str, Any]:
    fields = canonical_fields(HEADS | config)
    return {
        name.removeprefix(beginning): value for name, value in fields.items() if name.startswith(beginning)
    }


LLAMA3 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
ROPES = {
    "none": ({}, {"scaling.type": "none"}),
    "base": ({"rope_theta": 1e6}, {"freq_base": 1e6, "scaling.type": "none"}),
    "null": ({"rope_theta": 1e6, "rope_scaling": None}, {"freq_base": 1e6, "scaling.type": "none"}),
    "old linear": (
        {"rope_scaling": {"type": "linear", "factor": 2.0}},
        {"scaling.type": "linear", "scaling.factor": 2.0},
    ),
    "llama3 of version 4": (
        {"rope_theta": 5e5, "rope_scaling": {"rope_type": "llama3", **LLAMA3}},
        {
            "freq_base": 5e5,
            "scaling.type": "llama3",
            "scaling.factor": 8.0,
            "scaling.low_freq_factor": 1.0,
            "scaling.high_freq_factor": 4.0,
            "scaling.original_context_length": 64,
        },
    ),
    "version 5": (
        {
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 1e4,
                "factor": 4,
                "beta_fast": 32,
                "truncate": False,
            }
        },
        {
            "freq_base": 1e4,
            "scaling.type": "yarn",
            "scaling.factor": 4,
            "scaling.yarn_beta_fast": 32,
            "scaling.truncate": False,
        },
    ),
    "longrope, its first name": (
        {
            "rope_scaling": {"type": "su", "short_factor": [1.0], "long_factor": [2.0]},
            "original_max_position_embeddings": 9,
        },
        {
            "scaling.type": "longrope",
            "scaling.short_factor": [1.0],
            "scaling.long_factor": [2.0],
            "scaling.original_context_length": 9,
        },
    ),
    "by layer type": (
        {
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            }
        },
        {"freq_base": 1e6, "freq_base_swa": 1e4, "scaling.type": "linear", "scaling.factor": 8.0},
    ),
    "Gemma 3 of version 4": (
        {"rope_theta": 1e6, "rope_local_base_freq": 1e4},
        {"freq_base": 1e6, "freq_base_swa": 1e4, "scaling.type": "none"},
    ),
    "partial": ({"partial_rotary_factor": 0.5}, {"dimension_count": 8, "scaling.type": "none"}),
    "partial, version 5": (
        {"rope_parameters": {"partial_rotary_factor": 0.25}, "head_dim": 32},
        {"dimension_count": 8, "scaling.type": "none"},
    ),
    "several axes": (
        {"rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]}},
        {"dimension_sections": [2, 3, 3], "scaling.type": "none"},
    ),
    "unheard of": (
        {"rope_scaling": {"rope_type": "spiral", "turns": 3}},
        {"scaling.type": "spiral", "turns": 3},
    ),
}


@pytest.mark.parametrize("case", ROPES)
def test_rope_settings_have_canonical_names(case) -> None:
    config, expected = ROPES[case]
    assert group(config, "rope.") == expected


BAD_ROPES = [
    ({"rope_scaling": "linear"}, CorruptModel),
    ({"rope_parameters": {"sliding_attention": {"rope_type": "linear", "factor": 2.0}}}, UnsupportedModel),
    ({"rope_parameters": {"sliding_attention": {"factor": 2.0}}}, UnsupportedModel),
    ({"partial_rotary_factor": "half"}, CorruptModel),
    ({"partial_rotary_factor": 2.0}, CorruptModel),
    ({"partial_rotary_factor": 0.5, "num_attention_heads": 0}, CorruptModel),
]


@pytest.mark.parametrize(("config", "error"), BAD_ROPES)
def test_rope_settings_without_a_meaning_are_refused(config, error) -> None:
    with pytest.raises(error, match=r"config\.json: '(rope_\w+|partial_rotary_factor)'"):
        canonical_fields(HEADS | config)


KINDS = ["sliding_attention", "full_attention", "sliding_attention", "full_attention"]
WINDOWS = {
    "no window": ({"sliding_window": None}, {}),
    "every layer": ({"sliding_window": 8}, {"sliding_window": 8}),
    "not in use": ({"sliding_window": 8, "use_sliding_window": False, "max_window_layers": 2}, {}),
    "none has one": ({"sliding_window": 8, "layer_types": ["full_attention"] * 4}, {}),
    "by kind": (
        {"sliding_window": 8, "layer_types": KINDS},
        {"sliding_window": 8, "sliding_window_pattern": [True, False, True, False]},
    ),
    "every n-th": (
        {"sliding_window": 8, "sliding_window_pattern": 6},
        {"sliding_window": 8, "sliding_window_pattern": 6},
    ),
    "Qwen 2": (
        {"sliding_window": 8, "use_sliding_window": True, "max_window_layers": 3},
        {"sliding_window": 8, "sliding_window_pattern": [False, False, False, True]},
    ),
}


@pytest.mark.parametrize("case", WINDOWS)
def test_windows_have_canonical_names(case) -> None:
    config, expected = WINDOWS[case]
    assert group(config, "attention.") == {"head_count": 4, **expected}


def test_unknown_kinds_of_layers_are_refused_by_name() -> None:
    with pytest.raises(UnsupportedModel, match="'linear_attention'"):
        canonical_fields({"layer_types": ["linear_attention"], "sliding_window": 8})
    with pytest.raises(CorruptModel, match="layer_types"):
        canonical_fields({"layer_types": "full_attention", "sliding_window": 8})


def test_settings_that_nothing_reads_are_refused_unless_they_are_off_or_harmless() -> None:
    harmless = {"attention_bias": True, "attention_dropout": 0.5, "rope_scaling": None, "use_mup_attn": False}
    fields = Fields(
        canonical_fields({"vocab_size": 3} | harmless), spelling=SPELLING, meaningful=is_meaningful
    )
    fields.text("rope.scaling.type")
    fields.refuse_unread()
    wrong = {"logit_scale": 0.5, "attn_logit_softcapping": 50.0, "num_experts": 8, "clip_qkv": 8.0}
    for name, value in wrong.items():
        fields = Fields(canonical_fields({name: value}), spelling=SPELLING, meaningful=is_meaningful)
        fields.text("rope.scaling.type")
        with pytest.raises(UnsupportedModel, match=f"'{name}'"):
            fields.refuse_unread()


def test_text_config_comes_before_what_is_around_it() -> None:
    assert text_config({"a": 1, "b": 1, "text_config": {"b": 2}}) == {"a": 1, "b": 2}
    assert text_config({"a": 1, "text_config": None}) == {"a": 1}
