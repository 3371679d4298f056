"""What listens on the port: uvicorn's server with our application and our connections."""

import asyncio
import contextlib
from collections.abc import Iterator

import uvicorn
from starlette.types import ASGIApp

from corral.server.connection import Connection
from corral.server.drain import LAST_WORDS

MAX_HEADERS = 32 * 1024


class Listener(uvicorn.Server):
    """uvicorn's server, stopped by an event instead of a clock that ticks ten times a second."""

    def __init__(self, app: ASGIApp):
        config = uvicorn.Config(
            app,
            http=Connection,
            ws="none",
            loop="asyncio",
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            date_header=False,
            timeout_keep_alive=75,
            timeout_graceful_shutdown=int(LAST_WORDS),
            h11_max_incomplete_event_size=MAX_HEADERS,
        )
        super().__init__(config)
        self.stopped = asyncio.Event()

    async def main_loop(self) -> None:
        """Serve until `stopped` is set."""
        await self.stopped.wait()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to server/serve.py."""
        yield
