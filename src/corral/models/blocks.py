"""The parts that families share: attention, the gated feed-forward, and what authors call their tensors."""

from collections.abc import Mapping
from dataclasses import dataclass

from corral.models.builder import GraphBuilder
from corral.models.graph import Value
from corral.models.ops import Activation
from corral.models.program import KVLayer
from corral.models.rope import Rotation
from corral.models.sizes import Sizes

# What nearly all authors call these tensors in their own files.
PUBLISHED_TENSORS: Mapping[str, str] = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
    "blk.{i}.attn_norm.weight": "model.layers.{i}.input_layernorm.weight",
    "blk.{i}.ffn_norm.weight": "model.layers.{i}.post_attention_layernorm.weight",
    **{
        f"blk.{{i}}.{canonical}.{part}": f"model.layers.{{i}}.{published}.{part}"
        for part in ("weight", "bias")
        for canonical, published in {
            "attn_q": "self_attn.q_proj",
            "attn_k": "self_attn.k_proj",
            "attn_v": "self_attn.v_proj",
            "attn_output": "self_attn.o_proj",
            "ffn_gate": "mlp.gate_proj",
            "ffn_up": "mlp.up_proj",
            "ffn_down": "mlp.down_proj",
        }.items()
    },
}
PUBLISHED_QK_NORMS: Mapping[str, str] = {
    "blk.{i}.attn_q_norm.weight": "model.layers.{i}.self_attn.q_norm.weight",
    "blk.{i}.attn_k_norm.weight": "model.layers.{i}.self_attn.k_norm.weight",
}


@dataclass(frozen=True, slots=True)
class SelfAttention:
    """One layer's attention. Biases are added where the model has them."""

    sizes: Sizes
    rotation: Rotation
    window: int | None  # how many last tokens a query sees; None = all
    scale: float  # of the products of queries and keys
    qk_norm: bool = False  # each head's query and key is normalised before it rotates

    def build(self, g: GraphBuilder, h: Value, blk: str) -> Value:
        """What the layer `blk` adds to the hidden state, from its normalised rows h."""
        s = self.sizes
        kv_width = s.kv_heads * s.head_size
        widths = {"attn_q": s.heads * s.head_size, "attn_k": kv_width, "attn_v": kv_width}
        q, k, v = g.linears(h, {f"{blk}.{name}": width for name, width in widths.items()})
        q, k = (
            self._turned(g, q, f"{blk}.attn_q_norm", s.heads),
            self._turned(g, k, f"{blk}.attn_k_norm", s.kv_heads),
        )
        a = g.attention(q, k, v, KVLayer(s.kv_heads, s.head_size, self.window), self.scale)
        return g.linear(a, f"{blk}.attn_output", s.hidden)

    def _turned(self, g: GraphBuilder, x: Value, norm: str, heads: int) -> Value:
        if self.qk_norm:
            x = g.rms_norm(x, norm, self.sizes.eps, heads)
        return g.rope(x, heads, self.rotation)


def feed_forward(g: GraphBuilder, h: Value, blk: str, ffn: int, activation: Activation) -> Value:
    """down(activation(gate(h)) * up(h)), `ffn` wide between."""
    gate, up = g.linears(h, {f"{blk}.ffn_gate": ffn, f"{blk}.ffn_up": ffn})
    return g.linear(g.gated(gate, up, activation), f"{blk}.ffn_down", h.width)
