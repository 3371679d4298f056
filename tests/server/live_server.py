"""A live server on a free port, over the fake engine, in a thread of its own."""

import asyncio
import contextlib
import http.client
import json
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

from corral.config import Settings
from corral.pool.pool import Pool
from corral.server.app import create_app
from corral.server.drain import Drain
from corral.server.listener import Listener
from corral.server.serve import bind
from fake_engine import FakePool

MODEL = "tiny:latest"


class LiveServer:
    """The server and what is behind it, mostly fakes; `do` runs a function on its event loop."""

    def __init__(self, settings: Settings, pool: FakePool | Pool):
        self.pool, self.store, self.drain = pool, pool.store, Drain()
        self.engine = getattr(pool, "engine", None)
        self.socket = bind("127.0.0.1", 0)
        self.port = self.socket.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.settings = settings
        self.ready = threading.Event()
        self.thread = threading.Thread(target=lambda: asyncio.run(self._run()))
        self.thread.start()
        self.ready.wait(10)

    async def _run(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.listener = Listener(create_app(self.settings, self.store, self.pool, self.drain))
        self.ready.set()
        await self.listener.serve([self.socket])
        await self.pool.close()

    def do(self, function: Callable[[], Any]) -> None:
        done = threading.Event()
        self.loop.call_soon_threadsafe(lambda: (function(), done.set()))
        assert done.wait(10)

    def gate(self) -> asyncio.Event:
        """An event that holds something back until `do(gate.set)`."""
        return asyncio.Event()

    def stop(self) -> None:
        self.do(self.drain.abort)
        self.do(self.listener.stopped.set)
        self.thread.join(20)
        assert not self.thread.is_alive()

    def wait_for(self, condition: Callable[[], bool]) -> None:
        """Poll until it holds; the test's own time limit is the limit."""
        for _ in range(2000):
            if condition():
                return
            time.sleep(0.005)
        raise AssertionError("it never came true")

    def request(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
        """Status and decoded body of one request on a connection of its own."""
        status, _, data = self.raw(method, path, body, **headers)
        try:
            return status, json.loads(data)
        except ValueError:
            return status, data

    def raw(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any, bytes]:
        data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        with contextlib.closing(connection):
            connection.request(method, path, data, {k.replace("_", "-"): v for k, v in headers.items()})
            response = connection.getresponse()
            return response.status, response.headers, response.read()

    def post(self, path: str, **body: Any) -> tuple[int, Any]:
        return self.request("POST", path, {"model": MODEL, **body})

    def lines(self, path: str, **body: Any) -> list[Any]:
        """A stream's objects: NDJSON lines, or SSE data without [DONE]."""
        status, _, data = self.raw("POST", path, {"model": MODEL, "stream": True, **body})
        assert status == 200, data
        texts = [line.removeprefix(b"data: ") for line in data.split(b"\n") if line]
        return [json.loads(text) for text in texts if text != b"[DONE]"]

    def send(self, data: bytes) -> socket.socket:
        """A connection on which these bytes have been sent."""
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=30)
        connection.sendall(data)
        return connection

    def idle(self) -> bool:
        """Nothing that a client asked for is left running."""
        return not (self.engine.running or self.pool.leases or self.pool.waiting or self.drain.in_flight)
