"""Ollama's `options` to SamplingParams: defaults, then the model's own, then the request's."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from corral.config import parse_duration
from corral.errors import InvalidRequest
from corral.types import Ending, SamplingParams

# Every option of Ollama's: its type, and its default where the reply depends on it.
OPTIONS: dict[str, tuple[str, Any]] = {
    "num_keep": ("integer", 4),
    "seed": ("integer", -1),
    "num_predict": ("integer", -1),
    "top_k": ("integer", 40),
    "top_p": ("float32", 0.9),
    "min_p": ("float32", 0.0),
    "typical_p": ("float32", 1.0),
    "repeat_last_n": ("integer", 64),
    "temperature": ("float32", 0.8),
    "repeat_penalty": ("float32", 1.0),
    "presence_penalty": ("float32", 0.0),
    "frequency_penalty": ("float32", 0.0),
    "stop": ("array", ()),
    "num_ctx": ("integer", 0),
    # How to load: ours to decide, so only their types are looked at.
    "num_batch": ("integer", None),
    "num_gpu": ("integer", None),
    "main_gpu": ("integer", None),
    "num_thread": ("integer", None),
    "use_mmap": ("boolean", None),
    "draft_num_predict": ("integer", None),
}

# Names of SamplingParams that Ollama calls something else.
_OLLAMA_NAMES = {"repetition_penalty": "repeat_penalty", "max_tokens": "num_predict"}


@dataclasses.dataclass(frozen=True, slots=True)
class Options:
    """The options that bear on a reply."""

    params: SamplingParams
    ending: Ending
    num_keep: int


def read_options(model_params: Mapping[str, Any], request: Mapping[str, Any] | None) -> Options:
    """Merge and convert; InvalidRequest names a wrong type or range in Ollama's words."""
    values = {name: default for name, (_, default) in OPTIONS.items()}
    for source in (model_params, request or {}):
        for name, value in source.items():
            if name in OPTIONS and value is not None:
                values[name] = _typed(name, value)
    if values["typical_p"] not in (0.0, 1.0):
        raise InvalidRequest(
            'option "typical_p" is not supported yet; leave it out or set it to 1', "typical_p"
        )
    params = _params(values)
    ending = Ending(tuple(text for text in values["stop"] if text))
    try:
        params.validate()
        ending.validate()
    except InvalidRequest as error:
        name = _OLLAMA_NAMES.get(error.param or "", error.param or "")
        raise InvalidRequest(str(error).replace(error.param or "", name), name) from None
    return Options(params, ending, values["num_keep"])


def _params(values: Mapping[str, Any]) -> SamplingParams:
    window = values["repeat_last_n"]
    if window < -1:
        raise InvalidRequest("repeat_last_n must be -1 or more", "repeat_last_n")
    penalties = dict(
        repetition_penalty=values["repeat_penalty"],
        presence_penalty=values["presence_penalty"],
        frequency_penalty=values["frequency_penalty"],
        penalty_window=window,
    )
    predict = values["num_predict"]
    return SamplingParams(
        temperature=values["temperature"],
        top_k=max(values["top_k"], 0),
        top_p=values["top_p"],
        min_p=values["min_p"],
        seed=None if values["seed"] == -1 else values["seed"],
        max_tokens=predict if predict >= 0 else None,
        context=values["num_ctx"] or None,
        **(penalties if window else {}),
    )


def _typed(name: str, value: Any) -> Any:
    kind = OPTIONS[name][0]
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if kind == "array" and isinstance(value, list) and all(isinstance(text, str) for text in value):
        return value
    if kind == "boolean" and isinstance(value, bool):
        return value
    if kind == "float32" and number:
        return _within(name, float(value) if abs(value) < 1e300 else value)
    if kind == "integer" and number:
        return _within(name, int(value))
    raise InvalidRequest(f'option "{name}" must be of type {kind}', name)


def _within(name: str, value: Any) -> Any:
    if not -(2**63) <= value < 2**63:
        raise InvalidRequest(f'option "{name}" is out of range', name)
    return value


def read_keep_alive(value: float | str | None) -> float | None:
    """Seconds from a number or a Go duration; negative means for ever."""
    if value is None or isinstance(value, int | float):
        return value
    try:
        if value.strip("+-").isdecimal() and value.strip("+-0"):
            raise ValueError(f'time: missing unit in duration "{value}"')
        return parse_duration(value)
    except ValueError as error:
        raise InvalidRequest(f"keep_alive: {error}", "keep_alive") from None
