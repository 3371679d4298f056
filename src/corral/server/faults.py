"""How each error is told to a client: a table of classes, a body shape an API, and the layer that tells."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from corral import errors
from corral.config import Settings
from corral.server.wire import encode

log = logging.getLogger(__name__)

# The scope's key for headers, as ASGI has them, that every answer to the request is to have.
ANSWER_HEADERS = "corral.answer_headers"


@dataclass(frozen=True, slots=True)
class Fault:
    """An error as HTTP tells it."""

    status: int
    message: str
    code: str | None = None
    param: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)


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
    ClientDisconnect: (499, None, None),  # what is answered reaches nobody
}


UNKNOWN = Fault(500, "internal server error")


def fault(error: BaseException) -> Fault:
    """Look an error up; an unknown one says nothing about itself."""
    if isinstance(error, HTTPException):
        return Fault(error.status_code, error.detail, headers=error.headers or {})
    for kind in type(error).__mro__:
        if kind in TABLE:
            status, code, retry_after = TABLE[kind]
            headers = {"retry-after": str(retry_after)} if retry_after else {}
            return Fault(status, str(error), code, getattr(error, "param", None), headers)
    return UNKNOWN


def openai_body(found: Fault) -> dict[str, Any]:
    """OpenAI's shape."""
    kind = "invalid_request_error" if found.status < 500 else "server_error"
    return {"error": {"message": found.message, "type": kind, "param": found.param, "code": found.code}}


def ollama_body(found: Fault) -> dict[str, Any]:
    """Ollama's shape."""
    return {"error": found.message}


# Beginning of a path -> the shape of its API's errors; the first that fits counts.
BODIES: tuple[tuple[str, Callable[[Fault], dict[str, Any]]], ...] = (
    ("/v1/", openai_body),
    ("", ollama_body),
)


class FaultLayer:
    """Tells every error that is raised within, in the shape of the API that the path belongs to."""

    def __init__(self, app: ASGIApp, settings: Settings):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the application. An error after the headers is raised again, so that the server hangs up."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begun = False

        async def send_with_headers(message: Message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                message["headers"] = [*message.get("headers", ()), *scope.get(ANSWER_HEADERS, ())]
            await send(message)

        try:
            await self.app(scope, receive, send_with_headers)
        except Exception as error:
            if begun:
                raise
            await _response(scope, error)(scope, receive, send_with_headers)


def _response(scope: Scope, error: Exception) -> Response:
    found = fault(error)
    if found == UNKNOWN:
        log.error("%s %s failed", scope["method"], scope["path"], exc_info=error)
    shape = next(shape for beginning, shape in BODIES if scope["path"].startswith(beginning))
    body = encode(shape(found))
    return Response(body, found.status, dict(found.headers), media_type="application/json; charset=utf-8")
