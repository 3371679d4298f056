"""Gemma 2: norms around each half of a layer, soft caps, and a window in every other layer."""

from corral.models.blocks import (
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
from corral.models.rope import read_plain, read_rotation
from corral.models.sizes import MAX_HIDDEN, read_sizes, read_windows
from corral.weights.source import Constant, ModelSource, Published

LAYERS_27B = 46  # where a file does not say it: that size scales attention by hidden / heads
SOFTCAPS = (50.0, 30.0)  # of scores and of logits, where a file does not say them

PUBLISHED = Published(
    fields={
        "norm.offset": Constant(1.0),
        "attention.query_size": "query_pre_attn_scalar",
    },
    tensors={**PUBLISHED_TENSORS, **PUBLISHED_SANDWICH_NORMS},
)


def build(source: ModelSource) -> Graph:
    """Even layers see a window; all layers turn alike."""
    fields, sizes, g = source.fields, read_sizes(source.fields), GraphBuilder(source)
    plain = read_plain(fields, sizes.head_size, "rope.freq_base")
    rotation = read_rotation(g, plain, RopeStyle.HALF, sizes.context_length)
    usual = sizes.hidden / sizes.heads if sizes.layers == LAYERS_27B else sizes.head_size
    scale = fields.number("attention.query_size", 1, MAX_HIDDEN, default=usual) ** -0.5
    softcap = fields.number("attn_logit_softcapping", 0, 1e6, default=SOFTCAPS[0])
    final_softcap = fields.number("final_logit_softcapping", 0, 1e6, default=SOFTCAPS[1])
    attentions = [
        SelfAttention(sizes, rotation, scale, window, softcap=softcap)
        for window in read_windows(fields, sizes.layers, every=2)
    ]
    feed_forward = gated_feed_forward(sizes.ffn, read_activation(fields, Activation.GELU_TANH))
    return build_sandwich(g, sizes, attentions, feed_forward, final_softcap)
