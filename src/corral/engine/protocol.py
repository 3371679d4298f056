"""Frames between the server and an engine process: a 4-byte little-endian length, then msgpack.

A load has two halves. The engine opens the model and says Need; the server answers Reserve once there is
memory; the engine packs the weights and says Ready. Instead of Need or Ready it may say LoadFailed. Then the
server sends Add, Cancel and Stop, and the engine one Step frame a step. A frame longer than MAX_FRAME ends
the connection. Nothing on this socket is ever unpickled.
"""

from collections.abc import Iterator

import msgspec

from corral.types import (
    NO_SCORES,
    DeviceMemory,
    FinishReason,
    SamplingParams,
    Scores,
    SequenceStats,
    TokenLogprob,
)

MAX_FRAME = 64 * 2**20


class EngineSpec(msgspec.Struct, frozen=True, kw_only=True):
    """All that an engine process needs to load one model; passed as JSON on its standard input."""

    path: str  # of the model's file or folder
    threads: int
    batch_tokens: int
    max_sequences: int
    context_length: int = 0  # of a request that does not say; 0 = the model's own
    max_queue: int = 512  # requests waiting or running, which EngineClient counts
    drafts: bool = True  # guess tokens ahead where that pays
    isa: str = "auto"  # which native kernels: see config.ISAS
    executor: str = "native"  # a name in engine/load.py's table


class Add(msgspec.Struct, frozen=True, tag="add"):
    """Start a sequence. `prompt` is the token ids as little-endian int32 bytes.

    Requests with different salts share no cached prefix: what makes equal tokens differ belongs in it (an
    adapter, an image, a tenant).
    """

    id: int
    prompt: bytes
    params: SamplingParams
    scores: Scores = NO_SCORES
    salt: bytes = b""


class Cancel(msgspec.Struct, frozen=True, tag="cancel"):
    """Forget a sequence; unknown ids are ignored (it may just have finished)."""

    id: int


class Reserve(msgspec.Struct, frozen=True, tag="reserve"):
    """The memory that the model needs is reserved, and so much for its KV cache."""

    kv_bytes: int


class Stop(msgspec.Struct, frozen=True, tag="stop"):
    """Exit now."""


class Need(msgspec.Struct, frozen=True, tag="need"):
    """What the model will take; nothing of it is taken yet."""

    memory: dict[str, DeviceMemory]  # by device, without the KV cache
    kv_context: int  # bytes of the KV cache of one sequence of the context that requests have by default
    kv_least: int  # bytes of the KV cache with which the model is of use


class Ready(msgspec.Struct, frozen=True, tag="ready"):
    """The model is loaded."""

    context_length: int
    vocab_size: int
    num_blocks: int  # of all pools; a block holds block_size positions of one group of layers
    block_size: int
    kv_tokens: int  # the longest sequence that the KV cache holds
    memory: dict[str, DeviceMemory]  # what is taken, by device


class LoadFailed(msgspec.Struct, frozen=True, tag="load_failed"):
    """The model cannot be loaded; `kind` is the name of a class in corral.errors."""

    kind: str
    message: str


class Output(msgspec.Struct, frozen=True, omit_defaults=True):
    """New tokens of one sequence; `error` explains finish == error.

    The last one carries finish; with finish == stop its last token is the end or stop token itself. The first
    and the last one carry stats, as they stand then.
    """

    id: int
    tokens: list[int] = []
    logprobs: list[TokenLogprob] = []
    prompt_logprobs: list[TokenLogprob | None] = []  # with the first output; None for the first token
    finish: FinishReason | None = None
    stats: SequenceStats | None = None
    error: str = ""


class Occupancy(msgspec.Struct, frozen=True):
    """How full the engine is after a step."""

    running: int = 0
    waiting: int = 0
    blocks_used: int = 0
    blocks_cached: int = 0  # free but holding reusable prefixes
    tokens_held: int = 0  # places filled in used blocks: blocks_used * block_size - tokens_held are wasted
    preemptions: int = 0
    steps: int = 0
    drafted: int = 0  # tokens guessed and verified
    accepted: int = 0  # of these, right


class Step(msgspec.Struct, frozen=True, omit_defaults=True, tag="step"):
    """What one step gave. Iterating it gives an Output for each sequence.

    A sequence that got one token and nothing else, as most did, is an entry of `ids` and of `tokens`: two
    lists of integers are encoded and decoded in a tenth of the time of as many Outputs.
    """

    occupancy: Occupancy
    outputs: list[Output] = []
    ids: list[int] = []
    tokens: list[int] = []

    def __iter__(self) -> Iterator[Output]:
        for id, token in zip(self.ids, self.tokens, strict=True):
            yield Output(id, [token])
        yield from self.outputs


ToEngine = Reserve | Add | Cancel | Stop
FromEngine = Need | Ready | LoadFailed | Step
