"""JSON in and out: strict decoding whose errors name the field, and encoding to bytes."""

import math
import re
import time
from typing import Any, TypeVar

import msgspec

from corral.errors import InvalidRequest

T = TypeVar("T")

# These run over a body that a stranger wrote: two neighbours that both match spaces would take a long run of
# them apart in every way there is, in quadratic time.
_NON_NUMBER = re.compile(rb'"([^"\\]{1,64})"\s*:[\[\s]*-?(NaN|Infinity)')
_LONE_SURROGATE = re.compile(
    rb'"([^"\\]{1,64})"\s*:\s*(?:\[\s*)?"(?:[^"\\]|\\[^u]|\\u(?![dD][89a-fA-F])....'
    rb"|\\u[dD][89abAB]..\\u[dD][c-fC-F]..)*\\u[dD][89a-fA-F]"
)
_KEY = re.compile(rb'"([^"\\]{1,64})"\s*:')
_PATH = re.compile(r" - at `\$\.?(.*)`$")
_UNKNOWN = re.compile(r"unknown field `(.*?)`")

encode = msgspec.json.Encoder().encode


class UnknownField(InvalidRequest):
    """A field that the API does not have."""


def decode(body: bytes, kind: type[T]) -> T:
    """Decode a JSON object strictly; InvalidRequest says which field is wrong and how."""
    if not body.strip():
        raise InvalidRequest("missing request body")
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        raise _invalid_value(str(error)) from None
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"the request body is not valid UTF-8: {error.reason}{_near(body)}") from None
    except msgspec.DecodeError as error:
        raise _malformed(body, str(error)) from None
    except RecursionError:
        raise InvalidRequest("the request body is nested too deeply") from None


def _invalid_value(message: str) -> InvalidRequest:
    where = _PATH.search(message)
    path = where[1] if where else ""
    reason = _PATH.sub("", message)
    unknown = _UNKNOWN.search(reason)
    if unknown:
        name = f"{path}.{unknown[1]}" if path else unknown[1]
        return UnknownField(f"Unrecognized request argument supplied: {name}", name)
    missing = re.search(r"missing required field `(.*?)`", reason)
    if missing:
        name = f"{path}.{missing[1]}" if path else missing[1]
        return InvalidRequest(f"missing required field '{name}'", name)
    if not path:
        return InvalidRequest(f"the request body is not what this endpoint takes: {reason}")
    return InvalidRequest(f"invalid value for '{path}': {reason}", path)


def _malformed(body: bytes, reason: str) -> InvalidRequest:
    number = _NON_NUMBER.search(body)
    if number:
        name, value = number[1].decode(errors="replace"), number[2].decode()
        return InvalidRequest(f"invalid value for '{name}': {value} is not a JSON number", name)
    lone = _LONE_SURROGATE.search(body)
    if lone and ("surrogate" in reason or "truncated" in reason):
        name = lone[1].decode(errors="replace")
        return InvalidRequest(f"invalid value for '{name}': the text has half of a surrogate pair", name)
    at = re.search(r"\(byte (\d+)\)", reason)
    return InvalidRequest(f"invalid JSON: {reason}{_near(body[: int(at[1])] if at else body)}")


def _near(body: bytes) -> str:
    keys = _KEY.findall(body[-4096:])
    return f", at or after field '{keys[-1].decode(errors='replace')}'" if keys else ""


def finite(value: float) -> float:
    """JSON has no infinities: a log-probability of nothing becomes -9999, as in vLLM."""
    return value if math.isfinite(value) else -9999.0


def rfc3339(ns: int | None = None) -> str:
    """A UTC time with nanoseconds; now, unless given."""
    seconds, rest = divmod(time.time_ns() if ns is None else ns, 10**9)
    return f"{_second(seconds)}.{rest:09d}Z"


_last_second: tuple[int, str] = (0, "")


def _second(seconds: int) -> str:
    global _last_second
    if _last_second[0] != seconds:
        _last_second = (seconds, time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)))
    return _last_second[1]


def present(**fields: Any) -> dict[str, Any]:
    """The fields that are neither None nor empty."""
    return {name: value for name, value in fields.items() if value not in (None, "", [], {})}
