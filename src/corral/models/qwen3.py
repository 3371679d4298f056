"""Qwen 3: each head's query and key is normalised before it rotates."""

from corral.models.blocks import (
    PUBLISHED_QK_NORMS,
    PUBLISHED_TENSORS,
    SelfAttention,
    build_pre_norm,
    read_activation,
)
from corral.models.builder import GraphBuilder
from corral.models.experts import read_feed_forward
from corral.models.graph import Graph
from corral.models.ops import Activation, RopeStyle
from corral.models.rope import read_plain, read_rotation
from corral.models.sizes import read_sizes, read_windows
from corral.weights.source import ModelSource, Published

PUBLISHED = Published(tensors={**PUBLISHED_TENSORS, **PUBLISHED_QK_NORMS})


def build(source: ModelSource) -> Graph:
    """Pre-norm layers with SwiGLU, or a mixture of them."""
    fields, sizes, g = source.fields, read_sizes(source.fields), GraphBuilder(source)
    plain = read_plain(fields, sizes.head_size, "rope.freq_base")
    rotation = read_rotation(g, plain, RopeStyle.HALF, sizes.context_length)
    attentions = [
        SelfAttention(sizes, rotation, sizes.head_size**-0.5, window, qk_norm=True)
        for window in read_windows(fields, sizes.layers)
    ]
    activation = read_activation(fields, Activation.SILU)
    return build_pre_norm(g, sizes, attentions, read_feed_forward(fields, sizes.ffn, activation))
