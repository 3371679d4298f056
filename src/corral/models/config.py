"""A model's dimensions and constants, read from GGUF metadata and checked before anything is made of them.

Imports no array library: the server process reads context lengths here too.
"""

import math
from collections.abc import Iterable, Mapping, Sized
from dataclasses import dataclass
from typing import Any, NoReturn

from corral.errors import CorruptModel, UnsupportedModel

# Larger than any model there is, and small enough that no product of two of them is a surprise.
MAX_LAYERS = 1024
MAX_HIDDEN = 1 << 17
MAX_FFN = 1 << 20
MAX_HEADS = 1024
MAX_HEAD_DIM = 1024
MAX_CONTEXT = 1 << 26
MAX_VOCAB = 1 << 22
MAX_EXPERTS = 1 << 16
DEFAULT_THETA = 10000.0

# Families in which every n-th layer sees everything, where the file does not say.
WINDOW_PATTERNS = {"gemma3": 6}

# Positions can be divided by a factor; other ways of stretching a context need ops that do not exist yet.
LINEAR_SCALING = ("linear", "none")


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """What GGUF metadata says of a model; values that a family does not use are neutral."""

    architecture: str
    layers: int
    hidden: int
    ffn: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab_size: int
    context_length: int
    norm_eps: float
    rotated: int  # leading elements of a head that rotate
    rope_theta: float
    rope_scale: float = 1.0  # positions are divided by it
    local_rope_theta: float = DEFAULT_THETA  # of layers that see a window only
    window: int | None = None  # how many last tokens such a layer sees
    window_pattern: int | tuple[bool, ...] = (
        0  # every n-th layer sees all, 0 = none does; or which see a window
    )
    experts: int = 0
    logit_softcap: float = 0.0

    @property
    def windows(self) -> tuple[int | None, ...]:
        """How many last tokens each layer sees; None = all."""
        every = self.window_pattern
        local = (
            every
            if isinstance(every, tuple)
            else [every == 0 or layer % every < every - 1 for layer in range(self.layers)]
        )
        return tuple(self.window if seen else None for seen in local)


def read_architecture(metadata: Mapping[str, Any]) -> str:
    """The file's `general.architecture`."""
    value = metadata.get("general.architecture")
    if not isinstance(value, str) or not value:
        raise CorruptModel(f"metadata: 'general.architecture' must be a text, got {value!r:.80}")
    return value


def read_config(metadata: Mapping[str, Any]) -> ModelConfig:
    """Read a ModelConfig; CorruptModel or UnsupportedModel names the key that is wrong."""
    keys = _Keys(metadata, read_architecture(metadata))
    layers = keys.integer("block_count", MAX_LAYERS)
    hidden = keys.integer("embedding_length", MAX_HIDDEN)
    heads = keys.integer("attention.head_count", MAX_HEADS)
    kv_heads = keys.integer("attention.head_count_kv", MAX_HEADS, default=heads)
    if heads % kv_heads:
        keys.corrupt("attention.head_count_kv", f"{kv_heads} does not divide the {heads} heads")
    head_dim = _read_head_dim(keys, hidden, heads)
    window = keys.integer("attention.sliding_window", MAX_CONTEXT, low=0, default=0)
    return ModelConfig(
        architecture=keys.architecture,
        layers=layers,
        hidden=hidden,
        ffn=keys.integer("feed_forward_length", MAX_FFN),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        vocab_size=_read_vocab_size(keys),
        context_length=keys.integer("context_length", MAX_CONTEXT),
        norm_eps=keys.number("attention.layer_norm_rms_epsilon", 0, 0.1),
        rotated=_read_rotated(keys, head_dim),
        rope_theta=_read_theta(keys, "rope.freq_base", "rope.global.freq_base"),
        rope_scale=_read_rope_scale(keys),
        local_rope_theta=_read_theta(keys, "rope.freq_base_swa", "rope.local.freq_base"),
        window=window or None,
        window_pattern=_read_window_pattern(keys, layers),
        experts=keys.integer("expert_count", MAX_EXPERTS, low=0, default=0),
        logit_softcap=keys.number("final_logit_softcapping", 0, 1e6, default=0.0),
    )


def _read_head_dim(keys: "_Keys", hidden: int, heads: int) -> int:
    if "attention.key_length" not in keys and hidden % heads:
        keys.corrupt("attention.head_count", f"{heads} does not divide the embedding length {hidden}")
    head_dim = keys.integer("attention.key_length", MAX_HEAD_DIM, default=hidden // heads)
    value_length = keys.integer("attention.value_length", MAX_HEAD_DIM, default=head_dim)
    if value_length != head_dim:
        keys.unsupported(
            "attention.value_length",
            f"{value_length} differs from the key length {head_dim}; they must be equal",
        )
    if not 0 < head_dim <= MAX_HEAD_DIM or head_dim % 2:
        keys.unsupported(
            "attention.key_length", f"heads of {head_dim}: an even size to {MAX_HEAD_DIM} is needed"
        )
    return head_dim


def _read_rotated(keys: "_Keys", head_dim: int) -> int:
    rotated = keys.integer("rope.dimension_count", MAX_HEAD_DIM, default=head_dim)
    if rotated > head_dim or rotated % 2:
        keys.corrupt(
            "rope.dimension_count", f"{rotated} is not an even number up to the head size {head_dim}"
        )
    return rotated


def _read_theta(keys: "_Keys", name: str, other_name: str) -> float:
    """The other name is what Ollama's converter writes for Gemma."""
    return keys.number(name if name in keys else other_name, 1, 1e12, default=DEFAULT_THETA)


def _read_rope_scale(keys: "_Keys") -> float:
    kind = keys.text("rope.scaling.type", default="linear")
    if kind not in LINEAR_SCALING:
        keys.unsupported("rope.scaling.type", f"{kind!r:.80}; supported: {', '.join(LINEAR_SCALING)}")
    if keys.number("rope.scaling.attn_factor", 0, 1e6, default=1.0) != 1.0:
        keys.unsupported("rope.scaling.attn_factor", "scaled attention is not supported")
    older = keys.number("rope.scale_linear", 0, 1e6, default=0.0)
    factor = keys.number("rope.scaling.factor", 0, 1e6, default=older)
    return factor if factor and kind == "linear" else 1.0


def _read_vocab_size(keys: "_Keys") -> int:
    """The number of tokens, or what the model says where the file carries no tokeniser."""
    tokens = keys.metadata.get("tokenizer.ggml.tokens")
    if tokens is None:
        return keys.integer("vocab_size", MAX_VOCAB)
    if isinstance(tokens, str) or not isinstance(tokens, Sized) or not 0 < len(tokens) <= MAX_VOCAB:
        raise CorruptModel(f"metadata: 'tokenizer.ggml.tokens' must be an array of 1 to {MAX_VOCAB} texts")
    return len(tokens)


def _read_window_pattern(keys: "_Keys", layers: int) -> int | tuple[bool, ...]:
    name = "attention.sliding_window_pattern"
    value = keys.get(name)
    if value is None or (isinstance(value, int) and not isinstance(value, bool)):
        return keys.integer(name, MAX_LAYERS, low=0, default=WINDOW_PATTERNS.get(keys.architecture, 0))
    pattern = keys.array(name)
    if len(pattern) != layers or not all(isinstance(item, int) for item in pattern):
        keys.corrupt(name, f"must have a truth value for each of {layers} layers")
    return tuple(bool(item) for item in pattern)


class _Keys:
    """Reads `architecture.name` keys, each of one type and in a range."""

    def __init__(self, metadata: Mapping[str, Any], architecture: str):
        self.metadata, self.architecture = metadata, architecture

    def __contains__(self, name: str) -> bool:
        return f"{self.architecture}.{name}" in self.metadata

    def get(self, name: str) -> Any:
        return self.metadata.get(f"{self.architecture}.{name}")

    def array(self, name: str) -> list[Any]:
        """An array's elements; it is bounded before it becomes a list."""
        value = self.get(name)
        if isinstance(value, str) or not isinstance(value, Iterable) or not isinstance(value, Sized):
            self.corrupt(name, f"must be an array, got {value!r:.80}")
        if not 0 < len(value) <= MAX_LAYERS:
            self.corrupt(name, f"must have 1 to {MAX_LAYERS} elements, got {len(value)}")
        return list(value)

    def integer(self, name: str, high: int, *, low: int = 1, default: int | None = None) -> int:
        value = self._scalar(name, default)
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            self.corrupt(name, f"must be an integer from {low} to {high}, got {value!r:.80}")
        return value

    def number(self, name: str, low: float, high: float, *, default: float | None = None) -> float:
        value = self._scalar(name, default)
        if not isinstance(value, int | float) or isinstance(value, bool):
            self.corrupt(name, f"must be a number, got {value!r:.80}")
        if not math.isfinite(value) or not low <= value <= high:
            self.corrupt(name, f"must be from {low:g} to {high:g}, got {value!r:.80}")
        return float(value)

    def text(self, name: str, *, default: str) -> str:
        value = self._scalar(name, default)
        if not isinstance(value, str):
            self.corrupt(name, f"must be a text, got {value!r:.80}")
        return value

    def corrupt(self, name: str, problem: str) -> NoReturn:
        raise CorruptModel(f"metadata: '{self.architecture}.{name}': {problem}")

    def unsupported(self, name: str, problem: str) -> NoReturn:
        raise UnsupportedModel(f"metadata: '{self.architecture}.{name}': {problem}")

    def _scalar(self, name: str, default: Any) -> Any:
        """A single value; an array with a value for each layer is one where they are all the same."""
        value = self.get(name)
        if value is None:
            if default is None:
                self.corrupt(name, "is missing")
            return default
        if isinstance(value, str) or not isinstance(value, Iterable):
            return value
        first, *others = self.array(name)
        if any(other != first for other in others):
            self.unsupported(name, "differs from layer to layer")
        return first
