"""The same checkpoints as GGUF files, as llama.cpp's converter writes them (facts: its `conversion/`).

Tensor names come from the `gguf` package's map. What the converter changes: q and k rows of llama, Mistral
and Mixtral are permuted for interleaved rope, Gemma's norms get their 1, the experts of a layer are stacked,
and the factors of a scaled rope become tensors.
"""

import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from families.checkpoints import VOCAB, Weights, count_experts
from gguf_files import write_gguf

Config = Mapping[str, Any]

KEYS = {
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "attention.layer_norm_epsilon": "layer_norm_eps",
    "use_parallel_residual": "use_parallel_residual",
    "attention.key_length": "head_dim",
    "attention.value_length": "head_dim",
    "rope.freq_base": "rope_theta",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
    "expert_used_count": "num_experts_per_tok",
    "expert_feed_forward_length": "moe_intermediate_size",
}


def write_twin(
    path: Path, architecture: str, config: Config, weights: Weights, *, stacked: bool = True
) -> Path:
    """A GGUF file; `stacked` False leaves each expert a tensor, as in the first Mixtral files."""
    tensors = _named(architecture, config, weights, stacked)
    values = {key: config[name] for key, name in KEYS.items() if config.get(name) is not None}
    scaling, factors = _rope_scaling(config)
    metadata = {
        "general.architecture": architecture,
        **{
            f"{architecture}.{key}": value
            for key, value in {**values, **_other(architecture, config), **scaling}.items()
        },
        "tokenizer.ggml.tokens": [f"t{i}" for i in range(VOCAB)],
    }
    return write_gguf(path, metadata, {**tensors, **factors})


def _other(architecture: str, config: Config) -> dict[str, Any]:
    values: dict[str, Any] = {}
    if architecture == "llama":
        values["rope.dimension_count"] = _head_dim(config)
        values["vocab_size"] = config["vocab_size"]
    if (part := config.get("partial_rotary_factor")) is not None:
        values["rope.dimension_count"] = int(part * _head_dim(config))
    if config.get("sliding_window") is not None and config.get("use_sliding_window", True):
        values["attention.sliding_window"] = config["sliding_window"]
    if experts := count_experts(config):
        values["expert_count"] = experts
    return values


def _named(architecture: str, config: Config, weights: Weights, stacked: bool) -> Weights:
    """The tensors by GGUF's names, converted."""
    arch = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(arch, config["num_hidden_layers"])
    found: Weights = {}
    stacks: dict[str, list[np.ndarray]] = {}
    for name, values in weights.items():
        whole, expert = _without_expert(name)
        new = names.get_name(whole, try_suffixes=(".weight", ".bias"))
        converted = _converted(architecture, config, name, values)
        if expert is None:
            found[new] = converted
        elif stacked:
            stacks.setdefault(new, []).append(converted)
        else:
            found[new.replace("_exps.", f".{expert}.")] = converted
    return {**found, **{name: np.stack(experts) for name, experts in stacks.items()}}


def _without_expert(name: str) -> tuple[str, int | None]:
    """The name that the package's map has for the stack of all experts, and the expert's number."""
    match = re.search(r"\.experts\.(\d+)\.", name)
    if match is None:
        return name, None
    return name.replace(match[0], ".experts."), int(match[1])


def _converted(architecture: str, config: Config, name: str, values: np.ndarray) -> np.ndarray:
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    projection = name.split(".")[-2]
    if architecture == "llama" and projection in heads:
        # Halves of a head one after the other become pairs side by side.
        halves = values.reshape(heads[projection], 2, -1, *values.shape[1:])
        return halves.swapaxes(1, 2).reshape(values.shape)
    return (
        values + np.float32(1)
        if architecture.startswith("gemma") and name.endswith("norm.weight")
        else values
    )


def _head_dim(config: Config) -> int:
    return int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])


def _rope_scaling(config: Config) -> tuple[dict[str, Any], Weights]:
    """Keys and tensors of a scaled rope."""
    scaling = config.get("rope_scaling")
    return SCALINGS[scaling.get("rope_type", scaling.get("type"))](config, scaling) if scaling else ({}, {})


def _linear(config: Config, scaling: Config) -> tuple[dict[str, Any], Weights]:
    return {"rope.scaling.type": "linear", "rope.scaling.factor": scaling["factor"]}, {}


def _yarn(config: Config, scaling: Config) -> tuple[dict[str, Any], Weights]:
    keys = {
        "rope.scaling.factor": "factor",
        "rope.scaling.original_context_length": "original_max_position_embeddings",
        "rope.scaling.yarn_beta_fast": "beta_fast",
        "rope.scaling.yarn_beta_slow": "beta_slow",
    }
    found = {key: scaling[name] for key, name in keys.items() if name in scaling}
    return {"rope.scaling.type": "yarn", **found}, {}


def _longrope(config: Config, scaling: Config) -> tuple[dict[str, Any], Weights]:
    original, stretch = config["original_max_position_embeddings"], 1.0
    if config["max_position_embeddings"] > original:
        stretch = config["max_position_embeddings"] / original
    found = {
        "rope.scaling.type": "longrope",
        "rope.scaling.original_context_length": original,
        "rope.scaling.attn_factor": math.sqrt(1 + math.log(stretch) / math.log(original)),
    }
    factors = {f"rope_factors_{kind}.weight": scaling[f"{kind}_factor"] for kind in ("long", "short")}
    return found, {name: np.array(values, np.float32) for name, values in factors.items()}


def _llama3(config: Config, scaling: Config) -> tuple[dict[str, Any], Weights]:
    """Wavelengths that fit the original context often stay; those that hardly do are stretched."""
    dim = _head_dim(config)
    wavelengths = 2 * np.pi * config["rope_theta"] ** (np.arange(0, dim, 2) / dim)
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    turns = scaling["original_max_position_embeddings"] / wavelengths
    smooth = np.clip((turns - low) / (high - low), 0, 1)
    return {}, {"rope_freqs.weight": (1 / ((1 - smooth) / scaling["factor"] + smooth)).astype(np.float32)}


SCALINGS: Mapping[str, Callable[[Config, Config], tuple[dict[str, Any], Weights]]] = {
    "linear": _linear,
    "yarn": _yarn,
    "longrope": _longrope,
    "llama3": _llama3,
}
