"""The parts that families share: attention, feed-forwards, and what authors call their tensors."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from corral.models.builder import GraphBuilder
from corral.models.cache import KVLayer
from corral.models.graph import Graph, Value
from corral.models.ops import Activation
from corral.models.rope import Rotation
from corral.models.sizes import Sizes
from corral.weights.fields import Fields

# What nearly all authors call these tensors in their own files.
PUBLISHED_TENSORS: Mapping[str, str] = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
    "blk.{i}.attn_norm.weight": "model.layers.{i}.input_layernorm.weight",
    "blk.{i}.ffn_norm.weight": "model.layers.{i}.post_attention_layernorm.weight",
    **{
        f"blk.{{i}}.{canonical}.{part}": f"model.layers.{{i}}.{published}.{part}"
        for part in ("weight", "bias")
        for canonical, published in {
            "attn_q": "self_attn.q_proj",
            "attn_k": "self_attn.k_proj",
            "attn_v": "self_attn.v_proj",
            "attn_output": "self_attn.o_proj",
            "ffn_gate": "mlp.gate_proj",
            "ffn_up": "mlp.up_proj",
            "ffn_down": "mlp.down_proj",
        }.items()
    },
}
PUBLISHED_QK_NORMS: Mapping[str, str] = {
    "blk.{i}.attn_q_norm.weight": "model.layers.{i}.self_attn.q_norm.weight",
    "blk.{i}.attn_k_norm.weight": "model.layers.{i}.self_attn.k_norm.weight",
}


PUBLISHED_SANDWICH_NORMS: Mapping[str, str] = {
    "blk.{i}.post_attention_norm.weight": "model.layers.{i}.post_attention_layernorm.weight",
    "blk.{i}.ffn_norm.weight": "model.layers.{i}.pre_feedforward_layernorm.weight",
    "blk.{i}.post_ffw_norm.weight": "model.layers.{i}.post_feedforward_layernorm.weight",
}

Norm = Callable[[GraphBuilder, Value, str, float], Value]  # of rows, by its tensors' name and an epsilon
FeedForward = Callable[[GraphBuilder, Value, str], Value]  # from rows, and a layer's name


@dataclass(frozen=True, slots=True)
class SelfAttention:
    """One layer's attention. Biases are added where the model has them."""

    sizes: Sizes
    rotation: Rotation
    scale: float  # of the products of queries and keys
    window: int | None = None  # how many last tokens a query sees; None = all
    qk_norm: bool = False  # queries and keys are normalised before they rotate
    qk_norm_whole: bool = False  # over all heads together, not each by itself
    softcap: float = 0.0  # of the scores; 0 = none

    def build(self, g: GraphBuilder, h: Value, blk: str) -> Value:
        """What attention makes of rows h of the hidden state, which most families have normalised."""
        s = self.sizes
        kv_width = s.kv_heads * s.head_size
        widths = {"attn_q": s.heads * s.head_size, "attn_k": kv_width, "attn_v": kv_width}
        q, k, v = g.linears(h, {f"{blk}.{name}": width for name, width in widths.items()})
        q = self._rotate(g, q, f"{blk}.attn_q_norm", s.heads)
        k = self._rotate(g, k, f"{blk}.attn_k_norm", s.kv_heads)
        layer = KVLayer(s.kv_heads, s.head_size, s.head_size, self.window)
        a = g.attention(q, k, v, layer, self.scale, self.softcap)
        return g.linear(a, f"{blk}.attn_output", s.hidden)

    def _rotate(self, g: GraphBuilder, x: Value, norm: str, heads: int) -> Value:
        if self.qk_norm:
            x = g.rms_norm(x, norm, self.sizes.eps, 1 if self.qk_norm_whole else heads)
        return g.rope(x, heads, self.rotation)


# What authors call an activation, in transformers' words.
ACTIVATIONS: Mapping[str, Activation] = {
    **dict.fromkeys(("silu", "swish"), Activation.SILU),
    **dict.fromkeys(("gelu_pytorch_tanh", "gelu_new", "gelu_fast"), Activation.GELU_TANH),
}


def read_activation(fields: Fields, default: Activation) -> Activation:
    """The activation of feed-forwards: the family's own where the source does not name one."""
    name = fields.text("feed_forward.activation", default="")
    if not name:
        return default
    if name not in ACTIVATIONS:
        fields.unsupported(
            "feed_forward.activation", f"{name!r:.80} is not supported; supported: {', '.join(ACTIVATIONS)}"
        )
    return ACTIVATIONS[name]


def gated_feed_forward(ffn: int, activation: Activation) -> FeedForward:
    """down(activation(gate(h)) * up(h)), `ffn` wide between."""

    def build(g: GraphBuilder, h: Value, blk: str) -> Value:
        gate, up = g.linears(h, {f"{blk}.ffn_gate": ffn, f"{blk}.ffn_up": ffn})
        return g.linear(g.gated(gate, up, activation), f"{blk}.ffn_down", h.width)

    return build


def build_pre_norm(
    g: GraphBuilder,
    sizes: Sizes,
    attentions: Sequence[SelfAttention],
    feed_forward: FeedForward,
    norm: Norm = GraphBuilder.rms_norm,
) -> Graph:
    """Most decoders: a layer adds attention, then a feed-forward, each of the hidden state normalised."""
    x = g.embed("token_embd", sizes.vocab_size, sizes.hidden)
    for layer, attention in enumerate(attentions):
        blk = f"blk.{layer}"
        x = g.add(x, attention.build(g, norm(g, x, f"{blk}.attn_norm", sizes.eps), blk))
        x = g.add(x, feed_forward(g, norm(g, x, f"{blk}.ffn_norm", sizes.eps), blk))
    g.head(norm(g, x, "output_norm", sizes.eps), sizes.vocab_size)
    return g.build(sizes.vocab_size, sizes.context_length)


def build_sandwich(
    g: GraphBuilder,
    sizes: Sizes,
    attentions: Sequence[SelfAttention],
    feed_forward: FeedForward,
    softcap: float,
) -> Graph:
    """Gemma's decoders since the second: what a layer adds is normalised too; embeddings are scaled."""
    x = g.embed("token_embd", sizes.vocab_size, sizes.hidden, scale=sizes.hidden**0.5)
    for layer, attention in enumerate(attentions):
        blk = f"blk.{layer}"
        h = attention.build(g, g.rms_norm(x, f"{blk}.attn_norm", sizes.eps), blk)
        x = g.add(x, g.rms_norm(h, f"{blk}.post_attention_norm", sizes.eps))
        h = feed_forward(g, g.rms_norm(x, f"{blk}.ffn_norm", sizes.eps), blk)
        x = g.add(x, g.rms_norm(h, f"{blk}.post_ffw_norm", sizes.eps))
    g.head(g.rms_norm(x, "output_norm", sizes.eps), sizes.vocab_size, softcap)
    return g.build(sizes.vocab_size, sizes.context_length)
