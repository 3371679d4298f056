"""What an OpenAI request may not ask for, and its sampling fields to SamplingParams."""

from collections.abc import Callable, Mapping
from typing import Any

from corral.errors import InvalidRequest
from corral.server.dialects.openai_types import ChatRequest, CompletionRequest, Sampling
from corral.server.generation import Think
from corral.types import MAX_TOP_LOGPROBS, Ending, SamplingParams, Scores

MAX_N = 8
EFFORTS = ("minimal", "low", "medium", "high", "xhigh")
DEFAULT_COMPLETION_TOKENS = 16

# field -> whether its value changes nothing; any other value is refused.
_HARMLESS: dict[str, Callable[[Any], bool]] = {
    "tools": lambda value: not value,
    "tool_choice": lambda value: value in (None, "none", "auto"),
    "functions": lambda value: not value,
    "function_call": lambda value: value in (None, "none", "auto"),
    "response_format": lambda value: value is None or value == {"type": "text"},
    "modalities": lambda value: not value or value == ["text"],
    "audio": lambda value: value is None,
    "reasoning_effort": lambda value: value in (None, "none", *EFFORTS),
    "verbosity": lambda value: value in (None, "medium"),
    "web_search_options": lambda value: value is None,
    "suffix": lambda value: not value,
    "include_stop_str_in_output": lambda value: not value,
}

# field -> lowest and highest value that OpenAI takes, where SamplingParams takes more.
_RANGES = {
    "temperature": (0, 2),
    "presence_penalty": (-2, 2),
    "frequency_penalty": (-2, 2),
    "n": (1, MAX_N),
    "top_logprobs": (0, MAX_TOP_LOGPROBS),
    "seed": (-(2**63), 2**63 - 1),
    "max_tokens": (0, 2**31 - 1),
    "max_completion_tokens": (1, 2**31 - 1),
}


def check(wire: Sampling) -> None:
    """Raise InvalidRequest for what cannot be done and for what is out of range."""
    if not wire.model:
        raise InvalidRequest("you must provide a model parameter", "model")
    for name, harmless in _HARMLESS.items():
        if not harmless(getattr(wire, name, None)):
            raise InvalidRequest(f"'{name}' with this value is not supported yet", name)
    for name, (low, high) in _RANGES.items():
        value = getattr(wire, name, None)
        if value is not None and not low <= value <= high:
            raise InvalidRequest(f"{name} must be between {low:g} and {high:g}, got {value!s:.40}", name)
    if wire.stream_options is not None:
        if not wire.stream:
            raise InvalidRequest("stream_options is only allowed when stream is true", "stream_options")
        if wire.stream_options.continuous_usage_stats:
            raise InvalidRequest("continuous_usage_stats is not supported", "stream_options")


def chat_params(wire: ChatRequest, defaults: Mapping[str, Any]) -> SamplingParams:
    """A chat's parameters: to the end of the context unless it says otherwise."""
    if wire.max_tokens is not None and wire.max_completion_tokens not in (None, wire.max_tokens):
        raise InvalidRequest("set max_completion_tokens or max_tokens, not both", "max_tokens")
    limit = wire.max_completion_tokens if wire.max_completion_tokens is not None else wire.max_tokens
    return _params(wire, defaults, limit)


def completion_params(wire: CompletionRequest, defaults: Mapping[str, Any]) -> SamplingParams:
    """A completion's parameters: 16 tokens unless it says otherwise."""
    if wire.best_of not in (None, wire.n or 1):
        raise InvalidRequest("best_of other than n is not supported yet", "best_of")
    limit = DEFAULT_COMPLETION_TOKENS if wire.max_tokens is None else wire.max_tokens
    return _params(wire, defaults, limit)


def chat_scores(wire: ChatRequest) -> Scores:
    """A chat's log-probs: none unless `logprobs` is true."""
    if wire.top_logprobs is not None and not wire.logprobs:
        raise InvalidRequest("top_logprobs is only allowed when logprobs is true", "top_logprobs")
    return Scores((wire.top_logprobs or 0) if wire.logprobs else None)


def completion_scores(wire: CompletionRequest) -> Scores:
    """A completion's log-probs: those of the prompt too where it is echoed."""
    scores = Scores(wire.logprobs, wire.logprobs if wire.echo else None)
    scores.validate()
    return scores


def read_think(wire: ChatRequest) -> Think | None:
    """Whether the model is to think first."""
    effort = wire.reasoning_effort
    if effort is None:
        return None
    return Think(False) if effort == "none" else Think(True, effort, "reasoning_effort")


def read_ending(wire: Sampling, defaults: Mapping[str, Any]) -> Ending:
    """What ends a reply: the request's stop strings, or else the model's own."""
    given = wire.stop if wire.stop is not None else defaults.get("stop")
    texts = [given] if isinstance(given, str) else given or []
    ending = Ending(tuple(text for text in texts if isinstance(text, str)), bool(wire.ignore_eos))
    ending.validate()
    return ending


def _params(wire: Sampling, defaults: Mapping[str, Any], max_tokens: int | None) -> SamplingParams:
    context = defaults.get("num_ctx")
    params = SamplingParams(
        temperature=_given(wire.temperature, 1.0),
        top_k=max(_given(wire.top_k, 0), 0),
        top_p=_given(wire.top_p, 1.0),
        min_p=_given(wire.min_p, 0.0),
        repetition_penalty=_given(wire.repetition_penalty, 1.0),
        presence_penalty=_given(wire.presence_penalty, 0.0),
        frequency_penalty=_given(wire.frequency_penalty, 0.0),
        logit_bias=_logit_bias(wire.logit_bias or {}),
        seed=wire.seed,
        stop_token_ids=tuple(wire.stop_token_ids or ()),
        min_tokens=wire.min_tokens or 0,
        max_tokens=max_tokens,
        context=context if isinstance(context, int) and context > 0 else None,
    )
    params.validate()
    return params


def _given(value: Any, default: Any) -> Any:
    return default if value is None else value


def _logit_bias(wire: Mapping[str, float]) -> dict[int, float]:
    for key in wire:
        if not key.isdecimal() or len(key) > 10:
            raise InvalidRequest(f"logit_bias: '{key[:50]}' is not a token id", "logit_bias")
    return {int(key): value for key, value in wire.items()}
