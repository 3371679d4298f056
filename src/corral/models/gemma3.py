"""Gemma 3, text only: norms around each half of a block, QK norm, five local layers to one global."""

from corral.models.blocks import PUBLISHED_QK_NORMS, PUBLISHED_TENSORS, SelfAttention, feed_forward
from corral.models.builder import GraphBuilder
from corral.models.graph import Graph
from corral.models.ops import Activation, RopeStyle
from corral.models.rope import Rotation, read_plain, read_rotation
from corral.models.sizes import Sizes, read_sizes, read_windows
from corral.weights.source import Constant, ModelSource, Published

LAYERS_27B = 62  # that size alone scales attention by hidden / heads, not by the head size

PUBLISHED = Published(
    fields={"norm.offset": Constant(1.0)},
    tensors={
        **PUBLISHED_TENSORS,
        **PUBLISHED_QK_NORMS,
        "blk.{i}.post_attention_norm.weight": "model.layers.{i}.post_attention_layernorm.weight",
        "blk.{i}.ffn_norm.weight": "model.layers.{i}.pre_feedforward_layernorm.weight",
        "blk.{i}.post_ffw_norm.weight": "model.layers.{i}.post_feedforward_layernorm.weight",
    },
)


def build(source: ModelSource) -> Graph:
    """Local layers see a window; they have a frequency base of their own and are never stretched."""
    fields, sizes = source.fields, read_sizes(source.fields)
    if fields.number("final_logit_softcapping", 0, 1e6, default=0.0):
        fields.unsupported("final_logit_softcapping", "soft caps are not supported")
    g = GraphBuilder(source)
    # The second name is what Ollama's converter writes.
    plain = read_plain(fields, sizes.head_size, "rope.freq_base", "rope.global.freq_base")
    rotation = read_rotation(g, plain, RopeStyle.HALF, sizes.context_length)
    local = read_plain(fields, sizes.head_size, "rope.freq_base_swa", "rope.local.freq_base")
    local_rotation = Rotation(tuple(local.frequencies), RopeStyle.HALF)
    scale = _query_size(sizes) ** -0.5
    x = g.embed("token_embd", sizes.vocab_size, sizes.hidden, scale=sizes.hidden**0.5)
    for layer, window in enumerate(read_windows(fields, sizes.layers, every=6)):
        blk = f"blk.{layer}"
        attention = SelfAttention(sizes, local_rotation if window else rotation, window, scale, qk_norm=True)
        h = attention.build(g, g.rms_norm(x, f"{blk}.attn_norm", sizes.eps), blk)
        x = g.add(x, g.rms_norm(h, f"{blk}.post_attention_norm", sizes.eps))
        h = feed_forward(g, g.rms_norm(x, f"{blk}.ffn_norm", sizes.eps), blk, sizes.ffn, Activation.GELU_TANH)
        x = g.add(x, g.rms_norm(h, f"{blk}.post_ffw_norm", sizes.eps))
    g.head(g.rms_norm(x, "output_norm", sizes.eps), sizes.vocab_size)
    return g.build(sizes.vocab_size, sizes.context_length)


def _query_size(sizes: Sizes) -> int:
    return sizes.hidden // sizes.heads if sizes.layers == LAYERS_27B else sizes.head_size
