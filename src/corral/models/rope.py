"""How heads turn by position: every kind of rope becomes one frequency for each pair of elements.

A Plain rope has the frequencies that a model was first trained with; scaling changes them so that longer
contexts turn no further than that training saw. A kind may also multiply what rotates by a `magnitude`.
Sources: transformers 5, modeling_rope_utils.py; llama.cpp for the names of GGUF's fields and tensors.
Letters: P pairs of a head that rotate, E = 2 P elements of them.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from corral.models.ops import RopeStyle

if TYPE_CHECKING:
    from corral.models.builder import GraphBuilder
    from corral.weights.fields import Fields

DEFAULT_BASE = 10000.0
MAX_FACTOR = 1e6
MAX_CONTEXT = 1 << 26


@dataclass(frozen=True, slots=True)
class Rotation:
    """Pair i of a head turns by position * frequencies[i] radians and is multiplied by `magnitude`."""

    frequencies: tuple[float, ...]  # [P]
    style: RopeStyle
    magnitude: float = 1.0


@dataclass(frozen=True, slots=True)
class Plain:
    """Rope before any scaling: E elements of a head rotate, pair i by base^(-2 i / E)."""

    base: float
    elements: int  # E
    head_size: int  # E or more

    @property
    def frequencies(self) -> list[float]:
        """Radians a position [P]."""
        return [self.base ** (-2.0 * i / self.elements) for i in range(self.elements // 2)]


def read_plain(fields: "Fields", head_size: int, *names: str) -> Plain:
    """Rope as the fields have it, with its base under the first of these names that is there."""
    elements = fields.integer("rope.dimension_count", head_size, default=head_size)
    if elements % 2:
        fields.corrupt("rope.dimension_count", f"{elements} is not an even number")
    name = next((name for name in names if name in fields), names[0])
    return Plain(fields.number(name, 2, 1e12, default=DEFAULT_BASE), elements, head_size)


def read_rotation(g: "GraphBuilder", plain: Plain, style: RopeStyle, context_length: int) -> Rotation:
    """Rope as the model scales it for a context of this length; UnsupportedModel names a kind not known."""
    fields = g.fields
    given = "longrope" if g.has("rope_factors_long.weight") else "linear"
    kind = fields.text("rope.scaling.type", default=given)
    if kind not in SCALINGS:
        fields.unsupported("rope.scaling.type", f"{kind!r:.80}; supported: {', '.join(SCALINGS)}")
    frequencies, magnitude = SCALINGS[kind](_Scaling(g, plain, context_length))
    divisors = g.floats(
        "rope_freqs.weight", len(frequencies)
    )  # another way of writing llama3 and proportional
    if divisors is not None:
        frequencies = [frequency / divisor for frequency, divisor in zip(frequencies, divisors, strict=True)]
    fields.get("rope.scaling.finetuned")  # changes nothing
    return Rotation(tuple(frequencies), style, magnitude)


def llama3(
    frequencies: Sequence[float], factor: float, original: float, low: float, high: float
) -> list[float]:
    """Frequencies that turn less than `low` times within the original context are divided by the factor.

    Those that turn more than `high` times stay, and those between become something between.
    """

    def scaled(frequency: float) -> float:
        turns = original * frequency / (2 * math.pi)
        kept = min(max((turns - low) / (high - low), 0.0), 1.0)
        return (1 - kept) * frequency / factor + kept * frequency

    return [scaled(frequency) for frequency in frequencies]


def yarn(
    plain: Plain, factor: float, original: float, turns: tuple[float, float], whole: bool
) -> list[float]:
    """Pairs up to the one that turns `turns[0]` times within the original context keep their frequency.

    Those from the one that turns `turns[1]` times are divided by the factor, with a ramp between them, which
    begins and ends at whole pairs unless `whole` is False.
    """
    per_turn = plain.elements / (2 * math.log(plain.base))
    edges = [per_turn * math.log(original / (count * 2 * math.pi)) for count in turns]
    first, last = (math.floor(edges[0]), math.ceil(edges[1])) if whole else edges
    first, last = max(first, 0), min(last, plain.elements - 1)
    length = last - first or 0.001
    ramp = [min(max((pair - first) / length, 0.0), 1.0) for pair in range(plain.elements // 2)]
    return [
        frequency / factor * divided + frequency * (1 - divided)
        for frequency, divided in zip(plain.frequencies, ramp, strict=True)
    ]


def yarn_magnitude(factor: float, weight: float = 1.0) -> float:
    """What YaRN's authors multiply rotated elements by: scores over longer contexts would be too flat."""
    return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0


@dataclass(frozen=True, slots=True)
class _Scaling:
    """What a kind of scaling reads, by the names of its fields without `rope.scaling.`."""

    g: "GraphBuilder"
    plain: Plain
    context_length: int

    def number(self, name: str, default: float | None = None) -> float:
        return self.g.fields.number(f"rope.scaling.{name}", 0, MAX_FACTOR, default=default)

    def original_context(self) -> int:
        name = "rope.scaling.original_context_length"
        return self.g.fields.integer(name, MAX_CONTEXT, default=self.context_length)

    def divisors(self, length: str) -> Sequence[float]:
        """Of longrope, for "short" or "long" contexts: a tensor of a GGUF file, or a field."""
        fields, name, pairs = self.g.fields, f"rope.scaling.{length}_factor", self.plain.elements // 2
        given = self.g.floats(f"rope_factors_{length}.weight", pairs) or fields.array(name)
        if len(given) != pairs or not all(isinstance(each, int | float) and each > 0 for each in given):
            fields.corrupt(name, f"must have a positive number for each of {pairs} pairs")
        return given


_Scaled = tuple[list[float], float]  # frequencies and magnitude


def _scale_none(scaling: _Scaling) -> _Scaled:
    for name in ("factor", "attn_factor", "original_context_length"):
        scaling.g.fields.get(f"rope.scaling.{name}")  # what is off may have settings
    return scaling.plain.frequencies, 1.0


def _scale_linear(scaling: _Scaling) -> _Scaled:
    older = scaling.g.fields.number("rope.scale_linear", 0, MAX_FACTOR, default=0.0)
    factor = scaling.number("factor", older) or 1.0
    scaling.original_context()  # a file may tell it
    return [frequency / factor for frequency in scaling.plain.frequencies], scaling.number("attn_factor", 1.0)


def _scale_llama3(scaling: _Scaling) -> _Scaled:
    low, high = scaling.number("low_freq_factor"), scaling.number("high_freq_factor")
    if low >= high:
        scaling.g.fields.corrupt("rope.scaling.high_freq_factor", f"{high} is not above the low one, {low}")
    factor = _factor(scaling)
    return llama3(scaling.plain.frequencies, factor, scaling.original_context(), low, high), 1.0


def _scale_yarn(scaling: _Scaling) -> _Scaled:
    factor = _factor(scaling)
    turns = scaling.number("yarn_beta_fast", 32.0) or 32.0, scaling.number("yarn_beta_slow", 1.0) or 1.0
    whole = scaling.g.fields.flag("rope.scaling.truncate", default=True)
    # DeepSeek's: GGUF keeps a tenth of mscale_all_dim, and supposes that mscale is the same.
    all_dim = scaling.number("mscale_all_dim", 10 * scaling.number("yarn_log_multiplier", 0.0))
    own = scaling.number("mscale", all_dim)
    both = own and all_dim
    magnitude = (
        yarn_magnitude(factor, own) / yarn_magnitude(factor, all_dim) if both else yarn_magnitude(factor)
    )
    magnitude = scaling.number("attention_factor", magnitude) * scaling.number("attn_factor", 1.0)
    frequencies = yarn(scaling.plain, factor, scaling.original_context(), turns, whole)
    return frequencies, magnitude


def _scale_long(scaling: _Scaling) -> _Scaled:
    original = scaling.original_context()
    short, long = scaling.divisors("short"), scaling.divisors("long")
    factor = scaling.number("factor", scaling.context_length / original) or 1.0
    own = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 < original else 1.0
    magnitude = scaling.number("attention_factor", scaling.number("attn_factor", own))
    # One choice for all lengths: keys that are stored with one set cannot be read with the other.
    divisors = long if scaling.context_length > original else short
    pairs = zip(scaling.plain.frequencies, divisors, strict=True)
    return [frequency / divisor for frequency, divisor in pairs], magnitude


def _scale_proportional(scaling: _Scaling) -> _Scaled:
    """All pairs of a head have their frequencies; the first E elements' turn, the others stand still."""
    plain, factor = scaling.plain, scaling.number("factor", 1.0) or 1.0
    whole = Plain(plain.base, plain.head_size, plain.head_size).frequencies
    turning = plain.elements // 2
    return [*(frequency / factor for frequency in whole[:turning]), *[0.0] * (len(whole) - turning)], 1.0


def _factor(scaling: _Scaling) -> float:
    """How many times longer the context is than the original one."""
    return max(scaling.number("factor", scaling.context_length / scaling.original_context()), 1e-6)


SCALINGS: Mapping[str, Callable[[_Scaling], _Scaled]] = {
    "none": _scale_none,
    "linear": _scale_linear,
    "llama3": _scale_llama3,
    "yarn": _scale_yarn,
    "longrope": _scale_long,
    "proportional": _scale_proportional,
}
