"""Mixtral: Mistral with a mixture of experts. GGUF calls it `llama`, which has the layers."""

from collections.abc import Mapping

from corral.models import llama
from corral.models.llama import build
from corral.weights.source import Published

__all__ = ["PUBLISHED", "build"]

EXPERTS: Mapping[str, str] = {
    "blk.{i}.ffn_gate_inp.weight": "model.layers.{i}.block_sparse_moe.gate.weight",
    "blk.{i}.ffn_gate_exps.weight": "model.layers.{i}.block_sparse_moe.experts.{e}.w1.weight",
    "blk.{i}.ffn_down_exps.weight": "model.layers.{i}.block_sparse_moe.experts.{e}.w2.weight",
    "blk.{i}.ffn_up_exps.weight": "model.layers.{i}.block_sparse_moe.experts.{e}.w3.weight",
}
PUBLISHED = Published(llama.PUBLISHED.fields, {**llama.PUBLISHED.tensors, **EXPERTS})
