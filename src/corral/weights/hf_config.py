"""A Hugging Face configuration (config.json) by canonical names, as far as nearly all authors agree.

What only one family has is translated by that family's Published table. Sources: the configuration classes of
transformers 4 and 5, and its modeling_rope_utils.py. Version 5 keeps all of rope in `rope_parameters`; before
it there were `rope_theta`, `rope_scaling`, `rope_local_base_freq` and `partial_rotary_factor`.
"""

import re
from collections.abc import Mapping
from typing import Any

from corral.errors import CorruptModel, UnsupportedModel
from corral.weights.fields import MEANINGFUL

__all__ = ["SPELLING", "canonical_fields", "is_meaningful", "text_config"]

_NAMES = {
    "num_hidden_layers": "block_count",
    "max_position_embeddings": "context_length",
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    "hidden_act": "feed_forward.activation",
    "hidden_activation": "feed_forward.activation",
    "num_local_experts": "expert_count",
    "num_experts": "expert_count",
    "num_experts_per_tok": "expert_used_count",
    "moe_intermediate_size": "expert_feed_forward_length",
    "norm_topk_prob": "expert_weights_norm",
}
# Settings of rope that have a name in GGUF, or would if such files kept them. Others become `rope.KEY`.
_ROPE_NAMES = {
    "rope_theta": "rope.freq_base",
    "rope_local_base_freq": "rope.freq_base_swa",
    "mrope_section": "rope.dimension_sections",
    "rope_type": "rope.scaling.type",
    "factor": "rope.scaling.factor",
    "original_max_position_embeddings": "rope.scaling.original_context_length",
    "beta_fast": "rope.scaling.yarn_beta_fast",
    "beta_slow": "rope.scaling.yarn_beta_slow",
    **{
        key: f"rope.scaling.{key}"
        for key in (
            *("attention_factor", "truncate", "mscale", "mscale_all_dim"),  # yarn; the first of longrope too
            *("low_freq_factor", "high_freq_factor"),  # llama3
            *("short_factor", "long_factor"),  # longrope: a divisor for each frequency
        )
    },
}
_TOP_LEVEL_ROPE = ("rope_theta", "rope_local_base_freq", "original_max_position_embeddings")
_KINDS = {"default": "none", "mrope": "none", "su": "longrope"}  # other words for a rope.scaling.type
_FULL, _WINDOWED = "full_attention", "sliding_attention"

SPELLING = {name: key for key, name in (_NAMES | _ROPE_NAMES).items()}

# Keys that sound as if they changed what a model computes: one that is on and nothing reads is refused.
_SUSPECT = re.compile(
    "rope|rotary|attn|attention|expert|router|sparse|window|softcap|multiplier|scal(e|ing)|mup_"
    "|clip_qkv|parallel_residual"
)
_HARMLESS = frozenset(
    [
        *("attention_bias", "qkv_bias", "decoder_sparse_step"),  # the tensors say it
        *(
            "attention_dropout",
            "attn_pdrop",
            "output_attentions",
            "attn_implementation",
            "_attn_implementation",
        ),
        *("router_aux_loss_coef", "router_jitter_noise", "output_router_logits"),
    ]
)


def is_meaningful(name: str) -> bool:
    """Whether a field changes what the model computes, so that one that nothing reads must be refused."""
    return name.startswith(MEANINGFUL) or (name not in _HARMLESS and _SUSPECT.search(name) is not None)


def text_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of the language model; a multimodal one has it inside, as `text_config`."""
    inner = config.get("text_config")
    outer = {key: value for key, value in config.items() if key != "text_config"}
    return {**outer, **inner} if isinstance(inner, dict) else outer


def canonical_fields(config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields by canonical name; keys without a translation keep theirs. What is off is left out."""
    left = {key: value for key, value in config.items() if value is not None}
    fields = {name: left.pop(key) for key, name in _NAMES.items() if key in left}
    fields |= _read_windows(left, fields.get("block_count")) | _read_rope(left)
    if rotary := left.pop("partial_rotary_factor", fields.pop("rope.partial_rotary_factor", None)):
        fields["rope.dimension_count"] = _rotated(fields, rotary)
    return fields | {
        key: value for key, value in left.items() if value is not False or not is_meaningful(key)
    }


def _read_windows(left: dict[str, Any], layers: Any) -> dict[str, Any]:
    """attention.sliding_window and its pattern: every n-th layer sees all, or which layers see the window."""
    window, kinds = left.pop("sliding_window", None), left.pop("layer_types", None)
    in_use, first = left.pop("use_sliding_window", True), left.pop("max_window_layers", 0)
    pattern = left.pop("sliding_window_pattern", left.pop("_sliding_window_pattern", None))
    if kinds is not None:
        pattern = _windowed_layers(kinds)
    if not window or not in_use or (isinstance(pattern, list) and not any(pattern)):
        return {}
    if pattern is None and first and isinstance(layers, int) and isinstance(first, int):
        pattern = [layer >= first for layer in range(min(layers, 1 << 16))]
    return {
        "attention.sliding_window": window,
        **({} if pattern is None else {"attention.sliding_window_pattern": pattern}),
    }


def _windowed_layers(kinds: Any) -> list[bool]:
    if not isinstance(kinds, list):
        raise CorruptModel(f"config.json: 'layer_types' must be an array, got {kinds!r:.80}")
    if other := [kind for kind in kinds if kind not in (_FULL, _WINDOWED)]:
        raise UnsupportedModel(f"config.json: 'layer_types': {other[0]!r:.80} is not supported")
    return [kind == _WINDOWED for kind in kinds]


def _read_rope(left: dict[str, Any]) -> dict[str, Any]:
    """rope.*: the settings of all layers, or of those without a window; of the others the base alone."""
    settings = {key: left.pop(key) for key in _TOP_LEVEL_ROPE if key in left}
    for key in ("rope_scaling", "rope_parameters"):
        given = left.pop(key, {})
        if not isinstance(given, dict):
            raise CorruptModel(f"config.json: '{key}' must be an object, got {given!r:.80}")
        settings |= given
    windowed = settings.pop(_WINDOWED, None)
    if isinstance(full := settings.pop(_FULL, {}), dict):
        settings |= full
    if isinstance(windowed, dict):
        settings |= _base_alone(windowed)
    kind = settings.pop("type", "default")
    kind = settings.pop("rope_type", kind)
    settings["rope_type"] = _KINDS.get(kind, kind) if isinstance(kind, str) else kind
    return {
        _ROPE_NAMES.get(key, f"rope.{key}"): value for key, value in settings.items() if value is not None
    }


def _base_alone(windowed: Mapping[str, Any]) -> dict[str, Any]:
    """The frequency base of layers that see a window, which must be all that is special about them."""
    others = {key: value for key, value in windowed.items() if key != "rope_theta" and value is not None}
    if others.pop("rope_type", "default") != "default" or others:
        raise UnsupportedModel(
            "config.json: 'rope_parameters': scaling in layers with a window is not supported: "
            f"{windowed!r:.200}"
        )
    return {"rope_local_base_freq": windowed.get("rope_theta")}


def _rotated(fields: Mapping[str, Any], part: Any) -> int:
    """The elements of a head that rotate."""
    hidden, heads = fields.get("embedding_length"), fields.get("attention.head_count")
    head = fields.get("attention.key_length")
    if head is None and isinstance(hidden, int) and isinstance(heads, int) and heads:
        head = hidden // heads
    if not isinstance(head, int) or not isinstance(part, int | float) or not 0 < part <= 1:
        raise CorruptModel(
            f"config.json: 'partial_rotary_factor': {part!r:.80} of heads of {head!r:.80} is no size"
        )
    return int(head * part)
