"""The sizes that every decoder has, read and checked before anything is made of them."""

from dataclasses import dataclass

from corral.weights.fields import Fields

# Larger than any model there is, and small enough that no product of two of them is a surprise.
MAX_LAYERS = 1024
MAX_HIDDEN = 1 << 17
MAX_FFN = 1 << 20
MAX_HEADS = 1024
MAX_HEAD_SIZE = 1024
MAX_CONTEXT = 1 << 26
MAX_VOCAB = 1 << 22


@dataclass(frozen=True, slots=True)
class Sizes:
    """A decoder's dimensions: `kv_heads` keys and values of `head_size` elements serve `heads` queries."""

    layers: int
    hidden: int
    ffn: int
    heads: int
    kv_heads: int
    head_size: int
    vocab_size: int
    context_length: int
    eps: float  # of its norms


def read_sizes(fields: Fields, eps: str = "attention.layer_norm_rms_epsilon") -> Sizes:
    """CorruptModel or UnsupportedModel names the field that is wrong. The norms have theirs in `eps`."""
    hidden = fields.integer("embedding_length", MAX_HIDDEN)
    heads = fields.integer("attention.head_count", MAX_HEADS)
    kv_heads = fields.integer("attention.head_count_kv", MAX_HEADS, default=heads)
    if heads % kv_heads:
        fields.corrupt("attention.head_count_kv", f"{kv_heads} does not divide the {heads} heads")
    return Sizes(
        layers=fields.integer("block_count", MAX_LAYERS),
        hidden=hidden,
        ffn=fields.integer("feed_forward_length", MAX_FFN),
        heads=heads,
        kv_heads=kv_heads,
        head_size=_read_head_size(fields, hidden, heads),
        vocab_size=fields.integer("vocab_size", MAX_VOCAB),
        context_length=fields.integer("context_length", MAX_CONTEXT),
        eps=fields.number(eps, 0, 0.1),
    )


def read_windows(fields: Fields, layers: int, every: int = 0) -> tuple[int | None, ...]:
    """How many last tokens each layer sees; None = all.

    Every n-th layer sees all (0: none does), or a truth value for each layer says that it sees the window
    only. `every` is the n of a model that does not say.
    """
    window = fields.integer("attention.sliding_window", MAX_CONTEXT, low=0, default=0) or None
    name = "attention.sliding_window_pattern"
    value = fields.get(name)
    if value is None or (isinstance(value, int) and not isinstance(value, bool)):
        every = fields.integer(name, MAX_LAYERS, low=0, default=every)
        return tuple(window if every == 0 or layer % every < every - 1 else None for layer in range(layers))
    pattern = fields.array(name)
    if len(pattern) != layers or not all(isinstance(item, int) for item in pattern):
        fields.corrupt(name, f"must have a truth value for each of {layers} layers")
    return tuple(window if item else None for item in pattern)


def _read_head_size(fields: Fields, hidden: int, heads: int) -> int:
    name = "attention.key_length"
    if name not in fields and hidden % heads:
        fields.corrupt("attention.head_count", f"{heads} does not divide the embedding length {hidden}")
    size = fields.integer(name, MAX_HEAD_SIZE, default=hidden // heads)
    value_size = fields.integer("attention.value_length", MAX_HEAD_SIZE, default=size)
    if value_size != size:
        fields.unsupported(
            "attention.value_length", f"{value_size} differs from the key length {size}; they must be equal"
        )
    if size % 2:
        fields.unsupported(name, f"heads of {size}: an even size to {MAX_HEAD_SIZE} is needed")
    return size
