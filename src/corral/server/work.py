"""Responses that keep an engine busy: they end with their client, and report errors after the headers too."""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from typing import Protocol

from starlette.types import Message, Receive, Scope, Send

from corral.errors import ShuttingDown
from corral.server.drain import Drain
from corral.server.faults import Fault, fault

log = logging.getLogger(__name__)

# The scope's key for a PartWriter that our own connections offer beside ASGI. What it writes goes past every
# layer between: a layer that must see a stream's parts deletes the key, and they go through `send`.
PARTS = "corral.parts"


class PartWriter(Protocol):
    """A way to the client that need not be awaited: see server/connection.py."""

    def write_part(self, data: bytes) -> None:
        """Send a part of a body whose headers have gone."""
        ...


class OrderedSend:
    """ASGI's `send` as a PartWriter, for servers that have none: a task sends what has been written,
    neighbours as one, before any later message."""

    def __init__(self, send: Send):
        self._send = send
        self._unsent = b""
        self._sending: asyncio.Task[None] | None = None

    def write_part(self, data: bytes) -> None:
        """Send a part soon."""
        self._unsent += data
        if self._unsent and self._sending is None:
            self._sending = asyncio.ensure_future(self._send_parts())

    async def __call__(self, message: Message) -> None:
        """Send a message behind the parts."""
        if self._sending is not None:
            await self._sending
        await self._send(message)

    async def _send_parts(self) -> None:
        with contextlib.suppress(OSError):  # the client has gone, which `receive` tells
            while self._unsent:
                part, self._unsent = self._unsent, b""
                await self._send({"type": "http.response.body", "body": part, "more_body": True})
        self._sending = None


class Work:
    """An ASGI response whose body is made by `run`; the client's going away cancels that at once."""

    def __init__(self, drain: Drain, run: Callable[[Send, PartWriter], Awaitable[None]]):
        self.drain, self.run = drain, run

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run until the end, the client's disconnect, or the server's."""
        self.drain.refuse_when_draining()
        parts: PartWriter | None = scope.get(PARTS)
        if parts is None:
            parts = send = OrderedSend(send)
        task = asyncio.ensure_future(self.run(send, parts))
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

    async def run(send: Send, _: PartWriter) -> None:
        body = await work()
        await send(_start(media_type, len(body)))
        await send({"type": "http.response.body", "body": body})

    return Work(drain, run)


class Outlet:
    """Where the chunks of a stream go: kept until it is opened, then sent to the client one by one."""

    def __init__(self, send: Send, parts: PartWriter, media_type: str):
        self._send, self._parts, self._media_type = send, parts, media_type
        self._kept: list[bytes] = []
        self.opened = False

    def write(self, chunk: bytes) -> None:
        """Keep a chunk, or send it if the outlet is open."""
        if self.opened:
            self._parts.write_part(chunk)
        else:
            self._kept.append(chunk)

    async def open(self) -> None:
        """Send the headers, and what has been kept. An open outlet stays as it is."""
        if not self.opened:
            await self._send(_start(self._media_type))
            self.opened = True
            self._parts.write_part(b"".join(self._kept))

    async def close(self) -> None:
        """Send the body's end."""
        await self.open()
        await self._send({"type": "http.response.body", "body": b""})


def stream(
    drain: Drain,
    write_chunks: Callable[[Outlet], Awaitable[None]],
    media_type: str,
    last_words: Callable[[Fault], bytes],
) -> Work:
    """A body of chunks that are written to an outlet, and the outlet opened when the first is there. An error
    before that has its own status; a later one is told by the chunk that `last_words` makes of it."""

    async def run(send: Send, parts: PartWriter) -> None:
        outlet = Outlet(send, parts, media_type)
        try:
            await write_chunks(outlet)
        except asyncio.CancelledError:
            if not (drain.aborting and outlet.opened):
                raise
            outlet.write(last_words(fault(_aborted())))
        except Exception as error:
            if not outlet.opened:
                raise
            log.error("a stream failed: %s", error, exc_info=fault(error).status == 500)
            outlet.write(last_words(fault(error)))
        await outlet.close()

    return Work(drain, run)


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
