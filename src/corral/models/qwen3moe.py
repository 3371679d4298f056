"""Qwen 3 with mixtures of experts (30B-A3B, 235B-A22B, Coder): its layers, with a router in each."""

from corral.models import qwen3
from corral.models.qwen3 import build
from corral.weights.source import Published

__all__ = ["PUBLISHED", "build"]

PUBLISHED = Published(
    tensors={
        **qwen3.PUBLISHED.tensors,
        "blk.{i}.ffn_gate_inp.weight": "model.layers.{i}.mlp.gate.weight",
        **{
            f"blk.{{i}}.ffn_{part}_exps.weight": f"model.layers.{{i}}.mlp.experts.{{e}}.{part}_proj.weight"
            for part in ("gate", "up", "down")
        },
    }
)
