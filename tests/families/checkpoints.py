"""Tiny checkpoints of every family: config and tensor names are stored, the weights come from their names.

`configs/<case>.json` has `published`, the config.json as the authors' hub has it, `saved`, the same written
by transformers 5, and `tensors`, the shape of each tensor that transformers saves ({i} stands for a layer,
{e} for an expert). Every weight is exact in bfloat16 and in float16 alike: one golden holds for both.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

FOLDER = Path(__file__).parent
VOCAB = 250
POSITIONS = 140  # more than any window or original context of the configs, and not a multiple of anything

Weights = dict[str, np.ndarray]
Table = Mapping[str, float]  # a number by the end of a tensor's name

# Standard deviation of a tensor's weights by the end of its name; of a matrix, times the root of its columns.
# Heads attend to few positions and next tokens' log-probs are some nats apart: flat ones would hide mistakes.
# What attention adds is small beside the rest, as keys and values in float16 cost it three digits.
SPREADS = {
    "feedforward_layernorm.weight": 0.03,
    "norm.weight": 0.2,
    ".bias": 0.3,
    "q_proj.weight": 1.2,
    "k_proj.weight": 1.2,
    "o_proj.weight": 0.05,
    "down_proj.weight": 0.3,
    "w2.weight": 0.3,
    "embed_tokens.weight": 2.2,
    "lm_head.weight": 2.0,
    "mlp.gate.weight": 3.0,
    "block_sparse_moe.gate.weight": 3.0,
}
# Where the values of a norm lie. Those after attention and feed-forward say how much a layer adds; Gemma
# stores all without their 1. OLMo normalises what attention adds, however small it was.
CENTRES = {"norm.weight": 1.0}
GEMMA_CENTRES = {"post_attention_layernorm.weight": -0.9, "post_feedforward_layernorm.weight": -0.9}
OLMO_CENTRES = {"post_attention_layernorm.weight": 0.05, "post_feedforward_layernorm.weight": 0.1, **CENTRES}
OLMO_SPREADS = {"post_attention_layernorm.weight": 0.02, **SPREADS}


def read_case(name: str) -> dict[str, Any]:
    case: dict[str, Any] = json.loads((FOLDER / "configs" / f"{name}.json").read_text())
    return case


def tokens(count: int = POSITIONS) -> list[int]:
    """The text that all goldens score."""
    return (_random_bits("tokens", count) % np.uint64(VOCAB)).astype(int).tolist()


def weights(case: Mapping[str, Any]) -> Weights:
    """Every tensor by its published name, float32."""
    config = case["published"]
    layers, experts = config["num_hidden_layers"], count_experts(config)
    spreads, centres = _tables(config["model_type"])
    names = {
        pattern.replace("{i}", str(layer)).replace("{e}", str(expert)): shape
        for pattern, shape in case["tensors"].items()
        for layer in range(layers if "{i}" in pattern else 1)
        for expert in range(experts if "{e}" in pattern else 1)
    }
    return {name: _values(name, shape, spreads, centres) for name, shape in names.items()}


def count_experts(config: Mapping[str, Any]) -> int:
    """How many experts a layer has; Qwen and Mixtral have names of their own for it."""
    return int(config.get("num_experts", config.get("num_local_experts", 0)))


def _tables(model_type: str) -> tuple[Table, Table]:
    """Spreads and centres."""
    if model_type.startswith("gemma"):
        return SPREADS, GEMMA_CENTRES
    return (OLMO_SPREADS, OLMO_CENTRES) if model_type.startswith("olmo") else (SPREADS, CENTRES)


def _values(name: str, shape: list[int], spreads: Table, centres: Table) -> np.ndarray:
    """Normal values rounded to what bfloat16 and float16 both hold."""
    spread = _by_end(spreads, name, 1.0) * (shape[-1] ** -0.5 if len(shape) > 1 else 1.0)
    centre = _by_end(centres, name, 0.0)
    count = int(np.prod(shape))
    sums = _random_bits(name, count).view(np.uint16).reshape(count, 4).sum(axis=1, dtype=np.int64)
    normal = (sums / 65536 - 2) * 3**0.5
    values = (centre + spread * normal).astype(np.float32).view(np.uint32)
    values = ((values + 0x8000) & 0xFFFF0000).astype(np.uint32).view(np.float32)
    values[np.abs(values) < 2.0**-16] = 0.0
    return values.reshape(shape)


def _by_end(table: Table, name: str, default: float) -> float:
    return next((value for end, value in table.items() if name.endswith(end)), default)


def _random_bits(name: str, count: int) -> np.ndarray:
    """uint64 [count] that depend on the name alone: the raw stream of PCG64 is the same in every numpy."""
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:16], "little")
    return np.random.PCG64(seed).random_raw(count)
