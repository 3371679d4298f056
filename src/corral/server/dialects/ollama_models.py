"""Ollama's endpoints about models: version, tags, ps, show, pull, delete."""

import asyncio
from collections.abc import AsyncGenerator, Generator
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from math import inf
from typing import Any

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from corral.errors import InvalidRequest
from corral.pool.pool import LoadedModel
from corral.server.details import model_card, model_details, model_facts, model_row
from corral.server.dialects.ollama_shape import NDJSON, last_line
from corral.server.dialects.ollama_types import ModelRequest
from corral.server.routes import Access, Row
from corral.server.service import Service
from corral.server.wire import decode, encode, present
from corral.server.work import Outlet, Work, single, stream
from corral.store.progress import Progress

# Clients compare this with the Ollama release that brought what they need: numbers and dots only.
API_VERSION = "0.32.15"
FOREVER = timedelta(days=292 * 365)  # how Ollama says that a model stays


class OllamaModels:
    """The endpoints that manage models."""

    def __init__(self, service: Service):
        self.service = service

    def routes(self) -> list[Row]:
        """The table of paths."""
        return [
            Row("GET", "/", self.root, Access.ANYONE),
            Row("GET", "/api/version", self.version),
            Row("GET", "/api/tags", self.tags),
            Row("GET", "/api/ps", self.ps),
            Row("POST", "/api/show", self.show),
            Row("POST", "/api/pull", self.pull, Access.ADMIN),
            Row("DELETE", "/api/delete", self.delete, Access.ADMIN),
        ]

    async def root(self, request: Request) -> Response:
        """GET /: what clients look for to see that somebody is there."""
        return PlainTextResponse("Ollama is running")

    async def version(self, request: Request) -> Response:
        """GET /api/version."""
        return _json({"version": API_VERSION})

    async def tags(self, request: Request) -> Response:
        """GET /api/tags: the store's models, newest first."""
        stored = await asyncio.to_thread(self.service.store.list)
        return _json({"models": [model_row(model) for model in stored]})

    async def ps(self, request: Request) -> Response:
        """GET /api/ps: the models in memory, the longest-lived first."""
        loaded = self.service.pool.loaded()
        lasting = sorted(loaded, key=_expiry, reverse=True)
        return _json({"models": [_loaded(model) for model in lasting]})

    async def show(self, request: Request) -> Response:
        """POST /api/show."""
        wire = decode(await request.body(), ModelRequest)
        stored = await self.service.find(_required(wire))
        return _json(await asyncio.to_thread(model_card, stored, bool(wire.verbose)))

    async def delete(self, request: Request) -> Response:
        """DELETE /api/delete: out of memory first, then out of the store."""
        name = _required(decode(await request.body(), ModelRequest))
        await self.service.pool.unload(name)  # which finds damaged models too: they are to be removed
        await asyncio.to_thread(self.service.store.delete, name)
        return Response(status_code=200)

    async def pull(self, request: Request) -> Work:
        """POST /api/pull."""
        from corral.store.pull import pull  # here: a server that starts need not wait for it

        wire = decode(await request.body(), ModelRequest)
        steps = _pull(pull(self.service.store, _required(wire), inspect=model_facts))
        if wire.stream is not False:
            return stream(self.service.drain, lambda outlet: _write_steps(steps, outlet), NDJSON, last_line)
        return single(self.service.drain, lambda: _last_step(steps))


def _required(wire: ModelRequest) -> str:
    if not wire.wanted():
        raise InvalidRequest("model is required", "model")
    return wire.wanted()


def _json(value: object) -> Response:
    return Response(encode(value), media_type="application/json; charset=utf-8")


def _expiry(model: LoadedModel) -> float:
    return model.expires_at.timestamp() if model.expires_at else inf


def _loaded(model: LoadedModel) -> dict[str, Any]:
    """A row of ps. All memory is the processor's, so size_vram is 0."""
    expires = model.expires_at or datetime.now(UTC).astimezone() + FOREVER
    return {
        "name": model.stored.name.display,
        "model": model.stored.name.display,
        "size": model.size,
        "digest": model.stored.digest,
        "details": model_details(model.stored),
        "expires_at": expires.isoformat(),
        "size_vram": 0,
        "context_length": min(model.info.context_length, model.info.kv_tokens),
    }


async def _pull(progress: Generator[Progress, None, None]) -> AsyncGenerator[Progress, None]:
    """Take each step on a thread. A cancelled pull is closed as soon as the running step lets go."""
    step: asyncio.Future[Progress | None] | None = None
    try:
        while True:
            step = asyncio.ensure_future(asyncio.to_thread(next, progress, None))
            report = await asyncio.shield(step)
            if report is None:
                return
            yield report
    finally:
        if step is not None and not step.done():
            await asyncio.wait({step})
        await asyncio.to_thread(progress.close)


async def _write_steps(steps: AsyncGenerator[Progress, None], outlet: Outlet) -> None:
    async with aclosing(steps):
        async for step in steps:
            outlet.write(encode(_progress(step)) + b"\n")
            await outlet.open()


async def _last_step(steps: AsyncGenerator[Progress, None]) -> bytes:
    last: dict[str, Any] = {}
    async for step in steps:
        last = _progress(step)
    return encode(last)


def _progress(step: Progress) -> dict[str, Any]:
    sizes = {"total": step.total, "completed": step.completed} if step.total else {}
    return {"status": step.status, **present(digest=step.digest), **sizes}
