"""How each error is told to a client: one table of classes, one body shape an API."""

from dataclasses import dataclass
from typing import Any

from starlette.exceptions import HTTPException

from corral import errors
from corral.server.wire import encode


@dataclass(frozen=True, slots=True)
class Fault:
    """An error as HTTP tells it."""

    status: int
    message: str
    code: str | None = None
    param: str | None = None
    retry_after: int | None = None


# class -> (status, OpenAI's code, seconds after which to try again); the nearest base class counts
TABLE: dict[type[BaseException], tuple[int, str | None, int | None]] = {
    errors.PromptTooLong: (400, "context_length_exceeded", None),
    errors.InvalidRequest: (400, None, None),
    errors.InvalidName: (400, "invalid_model_name", None),
    errors.ModelNotFound: (404, "model_not_found", None),
    errors.UnsupportedModel: (400, "unsupported_model", None),
    errors.CorruptModel: (500, "corrupt_model", None),
    errors.PullFailed: (500, "pull_failed", None),
    errors.OutOfMemory: (503, "out_of_memory", None),
    errors.Overloaded: (503, "overloaded", 1),
    errors.ShuttingDown: (503, "shutting_down", 5),
    errors.EngineFailed: (500, "engine_failed", None),
    errors.UserError: (400, None, None),
    errors.CorralError: (500, None, None),
}


def fault(error: BaseException) -> Fault:
    """Look an error up; an unknown one says nothing about itself."""
    if isinstance(error, HTTPException):
        return Fault(error.status_code, error.detail)
    for kind in type(error).__mro__:
        if kind in TABLE:
            status, code, retry_after = TABLE[kind]
            return Fault(status, str(error), code, getattr(error, "param", None), retry_after)
    return Fault(500, "internal server error")


def openai_body(found: Fault) -> dict[str, Any]:
    """OpenAI's shape."""
    kind = "invalid_request_error" if found.status < 500 else "server_error"
    return {"error": {"message": found.message, "type": kind, "param": found.param, "code": found.code}}


def ollama_body(found: Fault) -> dict[str, Any]:
    """Ollama's shape."""
    return {"error": found.message}


def body_for(path: str, found: Fault) -> bytes:
    """The body in the shape of the API that the path belongs to."""
    return encode(openai_body(found) if path.startswith("/v1/") else ollama_body(found))


def headers_for(found: Fault) -> dict[str, str]:
    """What the status asks for beside its body."""
    return {"retry-after": str(found.retry_after)} if found.retry_after else {}
