"""One client's connection: uvicorn's, with limits on how long a request's headers and a client that does not
read may take, and with a short way out for the parts of a stream."""

import asyncio
import logging
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

from corral.server.work import PARTS

log = logging.getLogger(__name__)

HEADER_TIMEOUT = 10.0
SLOW_READER = 30.0  # seconds that a client may leave a full send buffer unread


class Connection(H11Protocol):
    """Closes itself when it opens without a word, stops in the middle of the headers, or is not read from."""

    _header_timer: asyncio.TimerHandle | None = None  # runs while headers are awaited
    _unread_timer: asyncio.TimerHandle | None = None  # runs while the send buffer is full

    def connection_made(self, transport: Any) -> None:
        """Expect a request soon, and tell the application of this connection."""
        super().connection_made(transport)
        self._start_header_timer()
        app = self.app

        async def with_connection(scope: Any, receive: Any, send: Any) -> None:
            scope[PARTS] = self
            await app(scope, receive, send)

        self.app = with_connection

    def write_part(self, data: bytes) -> None:
        """Send a part of a body that has no length. It goes past h11, whose objects and tables cost more than
        all else that a token takes here; nothing that h11 does later depends on these parts."""
        if data and not self.transport.is_closing():
            if self.scope["http_version"] >= "1.1":
                data = b"%x\r\n%b\r\n" % (len(data), data)
            self.transport.write(data)

    def pause_writing(self) -> None:
        """The client takes less than it is sent: give it some time."""
        super().pause_writing()
        self._unread_timer = self.loop.call_later(SLOW_READER, self._abort_unread)

    def resume_writing(self) -> None:
        """The client has caught up."""
        super().resume_writing()
        self._stop_unread_timer()

    def data_received(self, data: bytes) -> None:
        """Stop the header timer when the headers are complete."""
        awaited = self._headers_awaited()
        super().data_received(data)
        if not self._headers_awaited():
            self._stop_header_timer()
        elif not awaited or self._header_timer is None:
            self._start_header_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop both timers."""
        self._stop_header_timer()
        self._stop_unread_timer()
        super().connection_lost(exc)

    def _headers_awaited(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _start_header_timer(self) -> None:
        self._stop_header_timer()
        self._header_timer = self.loop.call_later(HEADER_TIMEOUT, self._close_without_headers)

    def _stop_header_timer(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None

    def _close_without_headers(self) -> None:
        if self._headers_awaited():
            self.transport.close()

    def _abort_unread(self) -> None:
        log.warning("a client left its answer unread for %.0f s: cancelled", SLOW_READER)
        self.transport.abort()

    def _stop_unread_timer(self) -> None:
        if self._unread_timer is not None:
            self._unread_timer.cancel()
            self._unread_timer = None
