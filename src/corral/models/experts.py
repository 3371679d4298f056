"""Mixtures of experts: a layer has many feed-forwards, and each row goes through those best for it."""

from dataclasses import dataclass

from corral.models.blocks import FeedForward, gated_feed_forward
from corral.models.builder import GraphBuilder
from corral.models.graph import Value
from corral.models.ops import Activation, Experts, Route
from corral.models.sizes import MAX_FFN
from corral.weights.fields import Fields

MAX_EXPERTS = 1 << 12


@dataclass(frozen=True, slots=True)
class Mixture:
    """`experts` gated feed-forwards, `ffn` wide, of which each row goes through `used`."""

    experts: int
    used: int
    ffn: int
    renormalise: bool  # the weights of the used ones add up to 1
    activation: Activation

    def build(self, g: GraphBuilder, h: Value, blk: str) -> Value:
        """What the layer `blk` adds to the hidden state, from its normalised rows h."""
        logits = g.linear(h, f"{blk}.ffn_gate_inp", self.experts)
        chosen = g.value(f"{blk}.experts", self.used, h.selected)
        weights = g.like(chosen, f"{blk}.expert_weights")
        g.append(Route(logits.index, chosen.index, weights.index, self.renormalise))

        def stack(name: str, rows: int, cols: int) -> int:
            return g.matrix(f"{blk}.ffn_{name}_exps.weight", self.experts, rows, cols)

        gate, up = stack("gate", self.ffn, h.width), stack("up", self.ffn, h.width)
        down = stack("down", h.width, self.ffn)
        out = g.like(h, f"{blk}.ffn_down_exps")
        inputs = h.index, chosen.index, weights.index
        g.append(Experts(*inputs, gate, up, down, out.index, self.activation))
        return out


def read_feed_forward(fields: Fields, ffn: int, activation: Activation) -> FeedForward:
    """The mixture of the fields in layers with a router, and a gated feed-forward `ffn` wide in others."""
    mixture, gated = read_mixture(fields, ffn, activation), gated_feed_forward(ffn, activation)
    if mixture is None:
        return gated
    routed = mixture.build

    def build(g: GraphBuilder, h: Value, blk: str) -> Value:
        return routed(g, h, blk) if g.has(f"{blk}.ffn_gate_inp.weight") else gated(g, h, blk)

    return build


def read_mixture(fields: Fields, ffn: int, activation: Activation) -> Mixture | None:
    """The mixture that the fields describe, if any; an expert is `ffn` wide where they do not say."""
    experts = fields.integer("expert_count", MAX_EXPERTS, low=0, default=0)
    used = fields.integer("expert_used_count", MAX_EXPERTS, low=0, default=0)
    if not experts:
        return None
    if not 0 < used <= experts:
        fields.corrupt("expert_used_count", f"{used} of {experts} experts cannot be used")
    return Mixture(
        experts,
        used,
        fields.integer("expert_feed_forward_length", MAX_FFN, default=ffn),
        fields.flag("expert_weights_norm", default=True),
        activation,
    )
