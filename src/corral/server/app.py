"""The ASGI application: routes of both APIs behind one gate, and every error in its API's shape."""

from collections.abc import Awaitable, Callable

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from corral.config import Settings
from corral.errors import CorralError
from corral.pool.pool import LoadedModel, Pool
from corral.server.dialects.ollama import OllamaText
from corral.server.dialects.ollama_models import OllamaModels
from corral.server.dialects.openai import OpenAI
from corral.server.drain import Drain
from corral.server.faults import body_for, fault, headers_for
from corral.server.limits import Gate
from corral.server.service import Service
from corral.store.local import Store

Endpoint = Callable[[Request], Awaitable[Response]]


def create_app(settings: Settings, store: Store, pool: Pool, drain: Drain | None = None) -> ASGIApp:
    """Everything that answers on the port. `drain` is how the caller stops it gently."""
    service = Service(settings, store, pool, drain or Drain())
    routes = [
        Route("/health", _live, methods=["GET"]),
        Route("/health/ready", _ready(service), methods=["GET"]),
        *OllamaModels(service).routes(),
        *OllamaText(service).routes(),
        *OpenAI(service).routes(),
    ]
    app = Starlette(
        routes=routes,
        exception_handlers={
            CorralError: _tell,
            HTTPException: _tell,
            ClientDisconnect: _nobody,
            Exception: _tell,
        },
    )
    app.router.redirect_slashes = False  # it would trust the Host header
    return Gate(app, settings.host, settings.origins)


async def _live(request: Request) -> Response:
    """GET /health: the process answers."""
    return PlainTextResponse("ok")


def _ready(service: Service) -> Endpoint:
    async def ready(request: Request) -> Response:
        """GET /health/ready: takes work, and no loaded engine is stuck; how full each one is."""
        if service.drain.draining:
            return PlainTextResponse("draining", 503)
        stuck = [str(model.name) for model in service.pool.loaded() if not model.engine.healthy()]
        if stuck:
            return PlainTextResponse(f"not making progress: {', '.join(stuck)}", 503)
        return JSONResponse({"status": "ok", "models": [_fullness(model) for model in service.pool.loaded()]})

    return ready


def _fullness(model: LoadedModel) -> dict[str, object]:
    ready = model.engine.ready
    kv = {"num_blocks": ready.num_blocks, "block_size": ready.block_size, "kv_bytes": ready.kv_bytes}
    return {"name": str(model.name), **kv, **msgspec.structs.asdict(model.engine.load)}


async def _tell(request: Request, error: Exception) -> Response:
    found = fault(error)
    headers = headers_for(found)
    if isinstance(error, HTTPException):
        headers |= dict(error.headers or {})
    body = body_for(request.scope["path"], found)
    return Response(body, found.status, headers, media_type="application/json; charset=utf-8")


async def _nobody(request: Request, error: Exception) -> Response:
    """The client has gone: what is answered reaches nobody."""
    return Response(status_code=499)
