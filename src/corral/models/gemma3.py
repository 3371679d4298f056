"""Gemma 3, text only: norms around each half of a layer, QK norm, five local layers to one global."""

from corral.models.blocks import (
    PUBLISHED_QK_NORMS,
    PUBLISHED_SANDWICH_NORMS,
    PUBLISHED_TENSORS,
    SelfAttention,
    build_sandwich,
    gated_feed_forward,
    read_activation,
)
from corral.models.builder import GraphBuilder
from corral.models.graph import Graph
from corral.models.ops import Activation, RopeStyle
from corral.models.rope import Rotation, read_plain, read_rotation
from corral.models.sizes import MAX_HIDDEN, read_sizes, read_windows
from corral.weights.source import Constant, ModelSource, Published

LAYERS_27B = 62  # where a file does not say it: that size scales attention by hidden / heads

PUBLISHED = Published(
    fields={
        "norm.offset": Constant(1.0),
        "attention.query_size": "query_pre_attn_scalar",
    },
    tensors={**PUBLISHED_TENSORS, **PUBLISHED_QK_NORMS, **PUBLISHED_SANDWICH_NORMS},
)


def build(source: ModelSource) -> Graph:
    """Local layers see a window; they have a frequency base of their own and are never stretched."""
    fields, sizes, g = source.fields, read_sizes(source.fields), GraphBuilder(source)
    # The second names are what Ollama's converter writes.
    plain = read_plain(fields, sizes.head_size, "rope.freq_base", "rope.global.freq_base")
    rotation = read_rotation(g, plain, RopeStyle.HALF, sizes.context_length)
    local = read_plain(fields, sizes.head_size, "rope.freq_base_swa", "rope.local.freq_base")
    local_rotation = Rotation(tuple(local.frequencies), RopeStyle.HALF)
    usual = sizes.hidden // sizes.heads if sizes.layers == LAYERS_27B else sizes.head_size
    scale = fields.number("attention.query_size", 1, MAX_HIDDEN, default=usual) ** -0.5
    softcap = fields.number("attn_logit_softcapping", 0, 1e6, default=0.0)
    final_softcap = fields.number("final_logit_softcapping", 0, 1e6, default=0.0)
    attentions = [
        SelfAttention(
            sizes, local_rotation if window else rotation, scale, window, qk_norm=True, softcap=softcap
        )
        for window in read_windows(fields, sizes.layers, every=6)
    ]
    feed_forward = gated_feed_forward(sizes.ffn, read_activation(fields, Activation.GELU_TANH))
    return build_sandwich(g, sizes, attentions, feed_forward, final_softcap)
