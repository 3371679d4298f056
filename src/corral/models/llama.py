"""The llama family: Llama 1 to 3.3, Mistral, Mixtral, SmolLM and everything else that GGUF calls `llama`."""

from corral.models.blocks import PUBLISHED_TENSORS, SelfAttention, build_pre_norm, read_activation
from corral.models.builder import GraphBuilder
from corral.models.experts import read_feed_forward
from corral.models.graph import Graph
from corral.models.ops import Activation, RopeStyle
from corral.models.rope import read_plain, read_rotation
from corral.models.sizes import read_sizes, read_windows
from corral.weights.source import Constant, ModelSource, Published

PUBLISHED = Published(fields={"rope.interleaved": Constant(False)}, tensors=PUBLISHED_TENSORS)


def build(source: ModelSource) -> Graph:
    """Pre-norm layers with SwiGLU, or a mixture of them.

    GGUF has q and k permuted so that neighbours rotate together.
    """
    fields, sizes, g = source.fields, read_sizes(source.fields), GraphBuilder(source)
    style = RopeStyle.INTERLEAVED if fields.flag("rope.interleaved", default=True) else RopeStyle.HALF
    plain = read_plain(fields, sizes.head_size, "rope.freq_base")
    rotation = read_rotation(g, plain, style, sizes.context_length)
    attentions = [
        SelfAttention(sizes, rotation, sizes.head_size**-0.5, window)
        for window in read_windows(fields, sizes.layers)
    ]
    activation = read_activation(fields, Activation.SILU)
    return build_pre_norm(g, sizes, attentions, read_feed_forward(fields, sizes.ffn, activation))
