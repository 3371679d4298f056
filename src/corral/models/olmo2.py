"""OLMo 2: what a layer adds is normalised and what it reads is not; QK norm over all heads together."""

from corral.models.blocks import (
    PUBLISHED_QK_NORMS,
    PUBLISHED_SANDWICH_NORMS,
    PUBLISHED_TENSORS,
    SelfAttention,
    gated_feed_forward,
    read_activation,
)
from corral.models.builder import GraphBuilder
from corral.models.graph import Graph
from corral.models.ops import Activation, RopeStyle
from corral.models.rope import read_plain, read_rotation
from corral.models.sizes import read_sizes
from corral.weights.source import ModelSource, Published

PUBLISHED = Published(tensors={**PUBLISHED_TENSORS, **PUBLISHED_QK_NORMS, **PUBLISHED_SANDWICH_NORMS})


def build(source: ModelSource) -> Graph:
    """Post-norm layers with SwiGLU. OLMo 3, which GGUF calls olmo2 too, has windows, which are refused."""
    fields, sizes, g = source.fields, read_sizes(source.fields), GraphBuilder(source)
    plain = read_plain(fields, sizes.head_size, "rope.freq_base")
    rotation = read_rotation(g, plain, RopeStyle.HALF, sizes.context_length)
    attention = SelfAttention(sizes, rotation, sizes.head_size**-0.5, qk_norm=True, qk_norm_whole=True)
    feed_forward = gated_feed_forward(sizes.ffn, read_activation(fields, Activation.SILU))
    x = g.embed("token_embd", sizes.vocab_size, sizes.hidden)
    for layer in range(sizes.layers):
        blk = f"blk.{layer}"
        h = attention.build(g, x, blk)
        x = g.add(x, g.rms_norm(h, f"{blk}.post_attention_norm", sizes.eps))
        h = feed_forward(g, x, blk)
        x = g.add(x, g.rms_norm(h, f"{blk}.post_ffw_norm", sizes.eps))
    g.head(g.rms_norm(x, "output_norm", sizes.eps), sizes.vocab_size)
    return g.build(sizes.vocab_size, sizes.context_length)
