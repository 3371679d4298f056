"""One client's connection: uvicorn's, with a limit on how long a request's headers may take."""

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

HEADER_TIMEOUT = 10.0


class Connection(H11Protocol):
    """Closes itself when it opens without a word, or stops in the middle of the headers."""

    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Expect a request soon."""
        super().connection_made(transport)
        self._expect()

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
