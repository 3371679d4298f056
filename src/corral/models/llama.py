"""The llama family: Llama 2 and 3, Mistral, SmolLM and everything else that GGUF calls `llama`."""

from corral.errors import UnsupportedModel
from corral.models.config import read_config
from corral.models.graph import GraphBuilder, Rotation
from corral.models.placement import Value
from corral.models.program import Activation, KVLayer, Program, RopeStyle
from corral.weights.gguf import GGUFFile


def build(gguf: GGUFFile) -> Program:
    """Pre-norm blocks, SwiGLU; rope is interleaved because GGUF stores q and k permuted so."""
    config = read_config(gguf.metadata)
    if config.experts:
        raise UnsupportedModel(
            f"metadata: 'llama.expert_count' is {config.experts}; mixtures of experts are not supported yet"
        )
    g = GraphBuilder(gguf)
    q_width, kv_width = config.heads * config.head_dim, config.kv_heads * config.head_dim
    rotation = Rotation(
        head_dim=config.head_dim,
        rotated=config.rotated,
        theta=config.rope_theta,
        style=RopeStyle.INTERLEAVED,
        scale=config.rope_scale,
        factors=g.optional("rope_freqs.weight", config.rotated // 2),
    )
    kv_layer = KVLayer(config.kv_heads, config.head_dim, config.window)

    def attend(blk: str, h: Value, last: bool) -> Value:
        widths = {f"{blk}.attn_q": q_width, f"{blk}.attn_k": kv_width, f"{blk}.attn_v": kv_width}
        q, k, v = g.queries_keys_values(h, widths, last)
        g.rope(q, config.heads, rotation)
        g.rope(k, config.kv_heads, rotation)
        return g.attention(q, k, v, kv_layer, config.head_dim**-0.5)

    def feed_forward(blk: str, h: Value) -> Value:
        gate, up = g.linears(h, {f"{blk}.ffn_gate": config.ffn, f"{blk}.ffn_up": config.ffn})
        return g.linear(g.gated(gate, up, Activation.SILU), f"{blk}.ffn_down", config.hidden)

    x = g.embed("token_embd", config.vocab_size, config.hidden)
    for layer in range(config.layers):
        blk = f"blk.{layer}"
        last = layer == config.layers - 1
        a = attend(blk, g.rms_norm(x, f"{blk}.attn_norm", config.norm_eps), last)
        if last:
            x = g.select(x)
        x = g.add(x, g.linear(a, f"{blk}.attn_output", config.hidden))
        x = g.add(x, feed_forward(blk, g.rms_norm(x, f"{blk}.ffn_norm", config.norm_eps)))
    x = g.rms_norm(x, "output_norm", config.norm_eps)
    g.head(x, "output", tied="token_embd", vocab_size=config.vocab_size)
    return g.build(config.vocab_size, config.context_length)
