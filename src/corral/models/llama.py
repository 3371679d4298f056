"""The llama family: Llama 1 to 3.3, Mistral, SmolLM and everything else that GGUF calls `llama`."""

from corral.models.blocks import PUBLISHED_TENSORS, SelfAttention, feed_forward
from corral.models.builder import GraphBuilder
from corral.models.graph import Graph
from corral.models.ops import Activation, RopeStyle
from corral.models.rope import read_plain, read_rotation
from corral.models.sizes import read_sizes, read_windows
from corral.weights.source import Constant, ModelSource, Published

PUBLISHED = Published(fields={"rope.interleaved": Constant(False)}, tensors=PUBLISHED_TENSORS)


def build(source: ModelSource) -> Graph:
    """Pre-norm blocks with SwiGLU. GGUF has q and k permuted so that neighbours rotate together."""
    g, sizes = GraphBuilder(source), read_sizes(source.fields)
    if source.fields.integer("expert_count", 1 << 16, low=0, default=0):
        source.fields.unsupported("expert_count", "mixtures of experts are not supported yet")
    interleaved = source.fields.flag("rope.interleaved", default=True)
    style = RopeStyle.INTERLEAVED if interleaved else RopeStyle.HALF
    plain = read_plain(source.fields, sizes.head_size, "rope.freq_base")
    rotation = read_rotation(g, plain, style, sizes.context_length)
    x = g.embed("token_embd", sizes.vocab_size, sizes.hidden)
    for layer, window in enumerate(read_windows(source.fields, sizes.layers)):
        blk = f"blk.{layer}"
        attention = SelfAttention(sizes, rotation, window, sizes.head_size**-0.5)
        x = g.add(x, attention.build(g, g.rms_norm(x, f"{blk}.attn_norm", sizes.eps), blk))
        h = g.rms_norm(x, f"{blk}.ffn_norm", sizes.eps)
        x = g.add(x, feed_forward(g, h, blk, sizes.ffn, Activation.SILU))
    g.head(g.rms_norm(x, "output_norm", sizes.eps), sizes.vocab_size)
    return g.build(sizes.vocab_size, sizes.context_length)
