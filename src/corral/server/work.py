"""Responses that keep an engine busy: they end with their client, and report errors after the headers too."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Protocol

from starlette.types import Message, Receive, Scope, Send

from corral.errors import ShuttingDown
from corral.server.drain import Drain
from corral.server.faults import Fault, fault

log = logging.getLogger(__name__)

CONNECTION = "corral.connection"  # the scope's key


class Line(Protocol):
    """The client's connection, beside what ASGI knows of it: see server/connection.py."""

    def write_part(self, data: bytes) -> None:
        """Send a part of a body whose headers have gone."""
        ...


class Work:
    """An ASGI response whose body is made by `run`; the client's going away cancels that at once."""

    def __init__(self, drain: Drain, run: Callable[[Send, Line], Awaitable[None]]):
        self.drain, self.run = drain, run

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run until the end, the client's disconnect, or the server's."""
        self.drain.refuse_when_draining()
        task = asyncio.ensure_future(self.run(send, scope[CONNECTION]))
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

    async def run(send: Send, _: Line) -> None:
        body = await work()
        await send(_start(media_type, len(body)))
        await send({"type": "http.response.body", "body": body})

    return Work(drain, run)


class Outlet:
    """Where the chunks of a stream go: kept until it is opened, then sent to the client one by one."""

    def __init__(self, send: Send, line: Line, media_type: str):
        self._send, self._line, self._media_type = send, line, media_type
        self._held: list[bytes] = []
        self.opened = False

    def write(self, chunk: bytes) -> None:
        """Take a chunk."""
        if self.opened:
            self._line.write_part(chunk)
        else:
            self._held.append(chunk)

    async def open(self) -> None:
        """Send the headers, and what has been kept."""
        if not self.opened:
            await self._send(_start(self._media_type))
            self.opened = True
            self._line.write_part(b"".join(self._held))

    async def close(self) -> None:
        """The body is complete."""
        await self.open()
        await self._send({"type": "http.response.body", "body": b""})


def stream(
    drain: Drain,
    tell: Callable[[Outlet], Awaitable[None]],
    media_type: str,
    last_words: Callable[[Fault], bytes],
) -> Work:
    """A body that `tell` writes and opens when there is something to say. An error before that has its own
    status; a later one is what `last_words` makes of it."""

    async def run(send: Send, line: Line) -> None:
        outlet = Outlet(send, line, media_type)
        try:
            await tell(outlet)
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
