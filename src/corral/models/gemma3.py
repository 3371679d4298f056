"""Gemma 3, text only: norms around each half of a block, QK norm, five local layers to one global."""

from corral.errors import UnsupportedModel
from corral.models.config import ModelConfig, read_config
from corral.models.graph import GraphBuilder, Rotation
from corral.models.placement import Value
from corral.models.program import Activation, KVLayer, Program, RopeStyle
from corral.weights.gguf import GGUFFile

LAYERS_27B = 62  # that size alone scales attention by hidden / heads, not by the head size


def build(gguf: GGUFFile) -> Program:
    """Norm weights in GGUF already include Gemma's 1 +."""
    config = read_config(gguf.metadata)
    if config.logit_softcap:
        raise UnsupportedModel("metadata: 'gemma3.final_logit_softcapping': soft caps are not supported")
    g = GraphBuilder(gguf)
    eps = config.norm_eps
    q_width, kv_width = config.heads * config.head_dim, config.kv_heads * config.head_dim
    scale = _query_size(config) ** -0.5

    def attend(blk: str, h: Value, window: int | None, last: bool) -> Value:
        widths = {f"{blk}.attn_q": q_width, f"{blk}.attn_k": kv_width, f"{blk}.attn_v": kv_width}
        q, k, v = g.queries_keys_values(h, widths, last)
        rotation = _rotation(config, local=window is not None)
        q = g.rms_norm(q, f"{blk}.attn_q_norm", eps, config.heads)
        g.rope(q, config.heads, rotation)
        k = g.rms_norm(k, f"{blk}.attn_k_norm", eps, config.kv_heads)
        g.rope(k, config.kv_heads, rotation)
        return g.attention(q, k, v, KVLayer(config.kv_heads, config.head_dim, window), scale)

    def feed_forward(blk: str, h: Value) -> Value:
        gate, up = g.linears(h, {f"{blk}.ffn_gate": config.ffn, f"{blk}.ffn_up": config.ffn})
        return g.linear(g.gated(gate, up, Activation.GELU_TANH), f"{blk}.ffn_down", config.hidden)

    x = g.embed("token_embd", config.vocab_size, config.hidden, scale=config.hidden**0.5)
    for layer, window in enumerate(config.windows):
        blk = f"blk.{layer}"
        last = layer == config.layers - 1
        a = attend(blk, g.rms_norm(x, f"{blk}.attn_norm", eps), window, last)
        if last:
            x = g.select(x)
        h = g.linear(a, f"{blk}.attn_output", config.hidden)
        x = g.add(x, g.rms_norm(h, f"{blk}.post_attention_norm", eps))
        h = feed_forward(blk, g.rms_norm(x, f"{blk}.ffn_norm", eps))
        x = g.add(x, g.rms_norm(h, f"{blk}.post_ffw_norm", eps))
    x = g.rms_norm(x, "output_norm", eps)
    g.head(x, "output", tied="token_embd", vocab_size=config.vocab_size)
    return g.build(config.vocab_size, config.context_length)


def _query_size(config: ModelConfig) -> int:
    return config.hidden // config.heads if config.layers == LAYERS_27B else config.head_dim


def _rotation(config: ModelConfig, local: bool) -> Rotation:
    """Local layers have a frequency base of their own and are never stretched."""
    return Rotation(
        head_dim=config.head_dim,
        rotated=config.rotated,
        theta=config.local_rope_theta if local else config.rope_theta,
        style=RopeStyle.HALF,
        scale=1.0 if local else config.rope_scale,
    )
