"""One HTTP request with the least work: a parser that makes lines of a reply, and a reader that stamps them.

It shares the machine with the server that it measures, so there is no client library here.
"""

import asyncio
import os
import ssl
import time
from collections.abc import Callable

from corral.bench.address import Address
from corral.errors import ServiceError

MAX_HEAD, MAX_LINE, MAX_REFUSAL = 64 * 1024, 4 * 2**20, 2000  # bytes
CONNECT = 10.0  # seconds


class BadReply(ServiceError):
    """The server refused a request, broke off, or answered what this API does not have."""

    def __init__(self, message: str, status: int = 0):
        super().__init__(plain(message))
        self.status = status


def plain(text: str) -> str:
    """A server's text without the characters that could steer a terminal."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


class ReplyParser:
    """An HTTP/1.1 reply as it arrives: its status, then the lines of its body however that is framed."""

    def __init__(self) -> None:
        self.status = 0
        self.ended = False
        self._raw = b""  # not yet taken apart
        self._line = b""  # the beginning of a line
        self._left: int | None = None  # bytes of the body or of the chunk; None = until the connection closes
        self._chunked = False

    def feed(self, data: bytes) -> list[bytes]:
        """Take the next bytes; the lines of the body that they complete. BadReply if this is not HTTP."""
        self._raw += data
        if not self.status and not self._read_head():
            return []
        body = self._chunks() if self._chunked else self._plain()
        if not body:
            return []
        *lines, self._line = (self._line + body).split(b"\n")
        if len(self._line) > MAX_LINE:
            raise BadReply("the server sent a line that is too long to be an event")
        return lines

    def close(self) -> list[bytes]:
        """Take the end of the connection; the last line, if any. BadReply if the reply was cut off."""
        if not self.status:
            raise BadReply("the server closed the connection without an answer")
        if not self.ended and (self._chunked or self._left):
            raise BadReply("the server broke off in the middle of its reply")
        return [self._line] if self._line else []

    def _read_head(self) -> bool:
        end = self._raw.find(b"\r\n\r\n")
        if end < 0:
            if len(self._raw) > MAX_HEAD or not b"HTTP/1.".startswith(self._raw[:7]):
                raise BadReply("the server does not answer in HTTP")
            return False
        first, *rest = self._raw[:end].decode("latin-1").split("\r\n")
        version, _, status = first.partition(" ")
        if not version.startswith("HTTP/1.") or not status[:3].isdigit():
            raise BadReply("the server does not answer in HTTP")
        self._raw = self._raw[end + 4 :]
        headers = {
            name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in rest)
        }
        if status[:3] == "100":
            return self._read_head()
        self.status = int(status[:3])
        self._chunked = "chunked" in headers.get("transfer-encoding", "").lower()
        length = headers.get("content-length", "")
        self._left = 0 if self._chunked else int(length) if length.isdigit() else None
        return True

    def _plain(self) -> bytes:
        body, self._raw = self._raw, b""
        if self._left is not None:
            body = body[: self._left]
            self._left -= len(body)
            self.ended = not self._left
        return body

    def _chunks(self) -> bytes:
        body = []
        while self._raw and not self.ended:
            if not self._left:
                size, newline, rest = self._raw.lstrip(b"\r\n").partition(b"\n")
                if not newline:
                    if len(size) > MAX_REFUSAL:
                        raise BadReply("the server sends chunks without a size")
                    break
                self._left, self._raw = _chunk_size(size), rest
                self.ended = not self._left
                continue
            piece = self._raw[: self._left]
            self._raw = self._raw[len(piece) :]
            self._left -= len(piece)
            body.append(piece)
        return b"".join(body)


def _chunk_size(text: bytes) -> int:
    try:
        size = int(text.partition(b";")[0].strip(), 16)
    except ValueError:
        size = -1
    if size < 0:
        raise BadReply(f"the server sent a chunk of the size {text[:20]!r}")
    return size


OnLine = Callable[[bytes, float], None]


class _Reader(asyncio.Protocol):
    """Hands each line of the reply, with the time at which it came, to `on_line`."""

    def __init__(self, on_line: OnLine):
        self.parser = ReplyParser()
        self.refusal = b""
        self.finished: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._on_line = on_line

    def data_received(self, data: bytes) -> None:
        now = time.perf_counter()
        try:
            self._hand_over(self.parser.feed(data), now)
        except Exception as error:  # also what on_line raises: it ends this request, not the loop
            self._finish(error)
        if self.parser.ended:
            self.connection_lost(None)

    def _hand_over(self, lines: list[bytes], now: float) -> None:
        for line in lines:
            if self.parser.status == 200:
                self._on_line(line, now)
            elif len(self.refusal) < MAX_REFUSAL:
                self.refusal += line + b"\n"

    def connection_lost(self, error: Exception | None) -> None:
        if self.finished.done():
            return
        try:
            self._hand_over(self.parser.close(), time.perf_counter())
        except Exception as problem:
            error = error or problem
        self._finish(error)

    def _finish(self, error: Exception | None) -> None:
        if self.finished.done():
            return
        if error:
            self.finished.set_exception(error)
        else:
            self.finished.set_result(None)


async def exchange(address: Address, path: str, body: bytes | None, on_line: OnLine, limit: float) -> None:
    """GET, or POST `body`; `on_line` gets each line of the reply and the time at which it came.

    Raises BadReply if the server cannot be reached, refuses, or takes longer than `limit` seconds.
    """
    loop = asyncio.get_running_loop()
    context = ssl.create_default_context() if address.tls else None
    try:
        async with asyncio.timeout(limit):
            transport, reader = await loop.create_connection(
                lambda: _Reader(on_line), address.host, address.port, ssl=context
            )
            try:
                transport.write(
                    address.head("GET" if body is None else "POST", path, len(body or b"")) + (body or b"")
                )
                await reader.finished
            finally:
                transport.abort()
    except TimeoutError:
        raise BadReply(f"the server did not finish its answer in {limit:.0f} s") from None
    except OSError as error:
        raise BadReply(f"the connection to {address} failed: {_reason(error)}") from None
    if reader.parser.status != 200:
        raise BadReply(_refusal(reader.parser.status, reader.refusal), reader.parser.status)


async def fetch(address: Address, path: str, body: bytes | None = None, limit: float = CONNECT) -> bytes:
    """GET, or POST `body`, and return the whole body of the reply; BadReply if it fails."""
    lines: list[bytes] = []
    await exchange(address, path, body, lambda line, _: lines.append(line), limit)
    return b"\n".join(lines)


def _refusal(status: int, text: bytes) -> str:
    shown = plain(text[:300].decode("utf-8", "replace"))
    return f"the server answered {status}: {shown}" if shown else f"the server answered {status}"


def _reason(error: OSError) -> str:
    return os.strerror(error.errno) if error.errno and error.errno > 0 else str(error)
