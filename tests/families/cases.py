"""Every case of tests/families.

A new one is a row here and `configs/<case>.json`, at first with nothing but `published`;
scripts/family_goldens.py adds the rest and makes the golden. Fields and conversions of GGUF that no case had
are told to `gguf_twins.py`. If the reference agrees and the native executor misses by what keys and values
lose in float16, `checkpoints.py` needs smaller weights for what attention adds.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

WITHOUT_WINDOW = {"sliding_window": 100_000}
PLAIN_ROPE = {"rope_scaling": None}
PLAIN_YARN = {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}}


@dataclass(frozen=True)
class Case:
    """`architecture` is GGUF's word for it; None where GGUF has no way to say what the config says.

    `decisive` = changes of the published config, each of which must change what the model computes: otherwise
    the case would pass without what it is there to test.
    """

    name: str
    architecture: str | None
    decisive: tuple[Mapping[str, Any], ...] = ()


CASES = (
    Case("llama2", "llama", ({"rope_theta": 20000.0}, {"rms_norm_eps": 0.1})),
    Case("llama3", "llama", (PLAIN_ROPE,)),
    Case("llama-biases", "llama"),
    Case("llama-narrow-heads", "llama"),
    Case("llama-linear", "llama", (PLAIN_ROPE,)),
    Case("llama-yarn", "llama", (PLAIN_ROPE,)),
    Case("llama-yarn-tuned", None, (PLAIN_ROPE, PLAIN_YARN)),
    Case("llama-longrope", "llama", (PLAIN_ROPE, {"original_max_position_embeddings": 256})),
    Case("llama-longrope-short", "llama", (PLAIN_ROPE, {"original_max_position_embeddings": 64})),
    Case("mistral", "llama", (WITHOUT_WINDOW,)),
    Case("qwen2", "qwen2", ({"rope_theta": 10000.0},)),
    Case("qwen2-tied-yarn", "qwen2", (PLAIN_ROPE, PLAIN_YARN)),
    Case("qwen3", "qwen3", ({"rope_theta": 10000.0},)),
    Case(
        "gemma2",
        "gemma2",
        (WITHOUT_WINDOW, {"attn_logit_softcapping": 50.0}, {"final_logit_softcapping": 30.0}),
    ),
    Case("gemma2-scaled", None, ({"query_pre_attn_scalar": 32},)),
    Case("gemma3", "gemma3", (WITHOUT_WINDOW, {"rope_theta": 10000.0}, {"rope_local_base_freq": 1000.0})),
    Case("gemma3-stretched", "gemma3", (PLAIN_ROPE,)),
    Case("gemma3-scaled", None, ({"query_pre_attn_scalar": 32},)),
    Case("qwen3moe", "qwen3moe", ({"num_experts_per_tok": 3},)),
    Case("qwen3moe-unnormalised", None, ({"norm_topk_prob": True},)),
    Case("mixtral", "llama", ({"num_experts_per_tok": 1},)),
    Case(
        "stablelm",
        "stablelm",
        ({"partial_rotary_factor": 0.5}, {"layer_norm_eps": 0.1}, {"rope_theta": 100.0}),
    ),
    Case("olmo2", "olmo2", ({"rope_theta": 10000.0}, {"rms_norm_eps": 0.1})),
)
