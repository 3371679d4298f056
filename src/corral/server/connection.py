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

    _deadline: asyncio.TimerHandle | None = None
    _unread: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Expect a request soon, and tell the application of this connection."""
        super().connection_made(transport)
        self._expect()
        app = self.app

        async def with_connection(scope: Any, receive: Any, send: Any) -> None:
            scope[PARTS] = self
            await app(scope, receive, send)

        self.app = with_connection

    def write_part(self, data: bytes) -> None:
        """Send a part of a body that has no length. It goes past h11, whose objects and tables cost more than
        all else that a token takes here; nothing that it does later depends on these parts."""
        if data and not self.transport.is_closing():
            if self.scope["http_version"] >= "1.1":
                data = b"%x\r\n%b\r\n" % (len(data), data)
            self.transport.write(data)

    def pause_writing(self) -> None:
        """The client takes less than it is sent: give it some time."""
        super().pause_writing()
        self._unread = self.loop.call_later(SLOW_READER, self._hang_up)

    def resume_writing(self) -> None:
        """It has caught up."""
        super().resume_writing()
        self._stop_waiting()

    def data_received(self, data: bytes) -> None:
        """Stop the clock when the headers are complete."""
        waiting = self._waiting()
        super().data_received(data)
        if not self._waiting():
            self._forget()
        elif not waiting or self._deadline is None:
            self._expect()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the clock."""
        self._forget()
        self._stop_waiting()
        super().connection_lost(exc)

    def _waiting(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _expect(self) -> None:
        self._forget()
        self._deadline = self.loop.call_later(HEADER_TIMEOUT, self._give_up)

    def _forget(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _give_up(self) -> None:
        if self._waiting():
            self.transport.close()

    def _hang_up(self) -> None:
        log.warning("a client left its answer unread for %.0f s: cancelled", SLOW_READER)
        self.transport.abort()

    def _stop_waiting(self) -> None:
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None
