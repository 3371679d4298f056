"""Responses that keep an engine busy: they end with their client, and report errors after the headers too."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing

from starlette.types import Message, Receive, Scope, Send

from corral.errors import ShuttingDown
from corral.server.drain import Drain
from corral.server.faults import Fault, fault

log = logging.getLogger(__name__)

SLOW_READER = 30.0  # seconds that a client may leave a full send buffer unread


class Work:
    """An ASGI response whose body is made by `run`; the client's going away cancels that at once."""

    def __init__(self, drain: Drain, run: Callable[[Send], Awaitable[None]]):
        self.drain, self.run = drain, run

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run until the end, the client's disconnect, or the server's."""
        self.drain.refuse_when_draining()
        task = asyncio.ensure_future(self.run(send))
        gone = asyncio.ensure_future(_disconnect(receive))
        try:
            with self.drain.work(task):
                await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
                if not task.done():
                    task.cancel()
                    await asyncio.wait({task})
        finally:
            gone.cancel()
            task.cancel()
            await asyncio.gather(task, gone, return_exceptions=True)
        if not task.cancelled():
            task.result()
        elif self.drain.aborting:
            raise _aborted()


def single(
    drain: Drain, work: Callable[[], Awaitable[bytes]], media_type: str = "application/json; charset=utf-8"
) -> Work:
    """One body, sent when it is complete."""

    async def run(send: Send) -> None:
        body = await work()
        await send(_start(media_type, len(body)))
        await send({"type": "http.response.body", "body": body})

    return Work(drain, run)


def stream(
    drain: Drain, chunks: AsyncGenerator[bytes, None], media_type: str, last_words: Callable[[Fault], bytes]
) -> Work:
    """Many chunks. The headers wait for the first one, so that an early error has its own status;
    a later error is what `last_words` makes of it."""

    async def run(send: Send) -> None:
        outlet = _Outlet(send, media_type)
        try:
            async with aclosing(chunks):
                async for chunk in chunks:
                    await outlet.write(chunk)
        except asyncio.CancelledError:
            if not (drain.aborting and outlet.started):
                raise
            await outlet.write(last_words(fault(_aborted())))
        except SlowReader:
            log.warning("a client left its answer unread for %.0f s: cancelled", SLOW_READER)
            raise
        except Exception as error:
            if not outlet.started:
                raise
            log.error("a stream failed: %s", error, exc_info=fault(error).status == 500)
            await outlet.write(last_words(fault(error)))
        await outlet.close()

    return Work(drain, run)


class SlowReader(Exception):
    """The client does not take what it asked for."""


class _Outlet:
    """Sends the headers with the first chunk."""

    def __init__(self, send: Send, media_type: str):
        self.send, self.media_type = send, media_type
        self.started = False

    async def write(self, chunk: bytes) -> None:
        if not self.started:
            self.started = True
            await self.send(_start(self.media_type))
        try:
            async with asyncio.timeout(SLOW_READER):
                await self.send({"type": "http.response.body", "body": chunk, "more_body": True})
        except TimeoutError:
            raise SlowReader from None

    async def close(self) -> None:
        if not self.started:
            await self.send(_start(self.media_type))
        await self.send({"type": "http.response.body", "body": b""})


def _start(media_type: str, length: int | None = None) -> Message:
    headers = [(b"content-type", media_type.encode())]
    if length is None:
        headers += [(b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no")]
    else:
        headers.append((b"content-length", str(length).encode()))
    return {"type": "http.response.start", "status": 200, "headers": headers}


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _aborted() -> ShuttingDown:
    return ShuttingDown("the server was shut down before the answer was complete")
