"""Values that cross packages: what to generate, and what came of it."""

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field

from corral.errors import InvalidRequest

MAX_TOP_LOGPROBS = 20
BLOCK_SIZE = 16  # tokens of one KV block
MAX_STOP, MAX_STOP_LENGTH = 16, 256  # strings, and characters of one: each is looked for after every token
MAX_LOGIT_BIAS = 1024


class FinishReason(enum.StrEnum):
    """Why a sequence ended."""

    STOP = "stop"  # an end-of-sequence token, a stop token or a stop string
    LENGTH = "length"  # max_tokens or the context's end
    ERROR = "error"  # the engine failed this request


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How the engine chooses each next token, and when it ends. Neutral values switch a filter off."""

    temperature: float = 1.0  # 0 = greedy
    top_k: int = 0  # 0 = off
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0  # > 1 makes seen tokens rarer (divides positive logits)
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    # How many last tokens (prompt included) all three penalties look at, as llama.cpp does; -1 = all of them.
    # None = as vLLM and OpenAI: repetition sees prompt and reply, presence and frequency the reply only.
    penalty_window: int | None = None
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None
    stop_token_ids: tuple[int, ...] = ()
    min_tokens: int = 0
    max_tokens: int | None = None  # None = to the end of the context; 0 = score the prompt only
    context: int | None = None  # this request's context length in tokens; None = the model's own

    def validate(self) -> None:
        """Raise InvalidRequest, naming the field, unless every value is in range."""
        _check_range("temperature", self.temperature, 0, 100)
        _check_range("top_k", self.top_k, -1, 2**31 - 1)
        _check_range("top_p", self.top_p, 0, 1)
        _check_range("min_p", self.min_p, 0, 1)
        _check_range("repetition_penalty", self.repetition_penalty, 1e-3, 100)
        _check_range("presence_penalty", self.presence_penalty, -100, 100)
        _check_range("frequency_penalty", self.frequency_penalty, -100, 100)
        _check_range("min_tokens", self.min_tokens, 0, 2**31 - 1)
        _check_range("max_tokens", self.max_tokens, 0, 2**31 - 1)
        _check_range("num_ctx", self.context, 1, 2**31 - 1)
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise InvalidRequest("min_tokens must not be larger than max_tokens", "min_tokens")
        if len(self.logit_bias) > MAX_LOGIT_BIAS:
            raise InvalidRequest(f"logit_bias takes at most {MAX_LOGIT_BIAS} entries", "logit_bias")
        for value in self.logit_bias.values():
            _check_range("logit_bias", value, -100, 100)


@dataclass(frozen=True, slots=True)
class Ending:
    """What ends a reply beside SamplingParams: the server sees to it, the engine never hears of it."""

    stop: tuple[str, ...] = ()  # strings, which the reply then does not show
    ignore_eos: bool = False  # else the tokens that the tokeniser knows to end a reply become stop tokens

    def validate(self) -> None:
        """Raise InvalidRequest, naming the field, unless the stop strings are few and short."""
        if len(self.stop) > MAX_STOP:
            raise InvalidRequest(f"stop takes at most {MAX_STOP} strings, got {len(self.stop)}", "stop")
        if not all(0 < len(text) <= MAX_STOP_LENGTH for text in self.stop):
            raise InvalidRequest(f"stop strings must have 1 to {MAX_STOP_LENGTH} characters", "stop")


@dataclass(frozen=True, slots=True)
class Scores:
    """Which tokens come with their log-probs, and with how many alternatives each; None = without."""

    logprobs: int | None = None  # the reply's tokens
    prompt_logprobs: int | None = None  # the prompt's

    def validate(self) -> None:
        """Raise InvalidRequest, naming the field, unless every value is in range."""
        _check_range("logprobs", self.logprobs, 0, MAX_TOP_LOGPROBS)
        _check_range("prompt_logprobs", self.prompt_logprobs, 0, MAX_TOP_LOGPROBS)


NO_SCORES = Scores()
PLAIN_ENDING = Ending()


def _check_range(name: str, value: float | None, low: float, high: float) -> None:
    if value is not None and not low <= value <= high:  # true of NaN too
        raise InvalidRequest(f"{name} must be between {low:g} and {high:g}, got {value!s:.40}", name)


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token's natural log-probability before any sampling filter, and the most likely alternatives."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()  # (token, logprob), most likely first


@dataclass(frozen=True, slots=True)
class SequenceStats:
    """Where a finished sequence's time went; durations in ns, and token counts."""

    prompt_tokens: int = 0
    cached_tokens: int = 0  # of the prompt, taken from the prefix cache
    output_tokens: int = 0
    queue_ns: int = 0  # from arrival to the first step
    prefill_ns: int = 0  # from the first step to the first token
    decode_ns: int = 0  # from the first token to the last


CPU = "cpu"  # the device whose memory is the machine's own


@dataclass(frozen=True, slots=True)
class DeviceMemory:
    """Bytes that a model takes on one device."""

    weights: int
    buffers: int  # for the rows of a step
    kv: int = 0

    @property
    def total(self) -> int:
        """Everything together."""
        return self.weights + self.buffers + self.kv
