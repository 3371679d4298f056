"""StableLM 2 and its 3B forerunner: norms that subtract the mean, and heads of which a quarter rotates."""

from dataclasses import replace

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
from corral.models.sizes import read_sizes
from corral.weights.source import ModelSource, Published

EPS = "attention.layer_norm_epsilon"
ROTATED = "rope.dimension_count"

PUBLISHED = Published(
    fields={EPS: "layer_norm_eps"},
    tensors={
        **PUBLISHED_TENSORS,
        "output_norm.bias": "model.norm.bias",
        "blk.{i}.attn_norm.bias": "model.layers.{i}.input_layernorm.bias",
        "blk.{i}.ffn_norm.bias": "model.layers.{i}.post_attention_layernorm.bias",
    },
)


def build(source: ModelSource) -> Graph:
    """Pre-norm layers with SwiGLU. The 12B, with both halves of a layer side by side, is refused."""
    fields, sizes, g = source.fields, read_sizes(source.fields, EPS), GraphBuilder(source)
    if not g.has("blk.0.ffn_norm.weight"):  # files set the field of models that have it too
        fields.unsupported(
            "use_parallel_residual", "attention and feed-forward of one norm are not supported"
        )
    plain = read_plain(fields, sizes.head_size, "rope.freq_base")
    if ROTATED not in fields:
        plain = replace(plain, elements=sizes.head_size // 4)
    rotation = read_rotation(g, plain, RopeStyle.HALF, sizes.context_length)
    attention = SelfAttention(sizes, rotation, sizes.head_size**-0.5)
    feed_forward = gated_feed_forward(sizes.ffn, read_activation(fields, Activation.SILU))
    return build_pre_norm(g, sizes, [attention] * sizes.layers, feed_forward, GraphBuilder.layer_norm)
