"""Qwen 2 and 2.5, QwQ and what is distilled into them: biases on queries, keys and values."""

from corral.models.blocks import (
    PUBLISHED_TENSORS,
    SelfAttention,
    build_pre_norm,
    gated_feed_forward,
    read_activation,
)
from corral.models.builder import GraphBuilder
from corral.models.graph import Graph
from corral.models.ops import Activation, RopeStyle
from corral.models.rope import read_plain, read_rotation
from corral.models.sizes import read_sizes, read_windows
from corral.weights.source import ModelSource, Published

PUBLISHED = Published(tensors=PUBLISHED_TENSORS)


def build(source: ModelSource) -> Graph:
    """Pre-norm layers with SwiGLU."""
    fields, sizes, g = source.fields, read_sizes(source.fields), GraphBuilder(source)
    plain = read_plain(fields, sizes.head_size, "rope.freq_base")
    rotation = read_rotation(g, plain, RopeStyle.HALF, sizes.context_length)
    attentions = [
        SelfAttention(sizes, rotation, sizes.head_size**-0.5, window)
        for window in read_windows(fields, sizes.layers)
    ]
    activation = read_activation(fields, Activation.SILU)
    return build_pre_norm(g, sizes, attentions, gated_feed_forward(sizes.ffn, activation))
