"""The application over the fake engine, in a thread of its own: on a port, or called as ASGI without one."""

import asyncio
import contextlib
import http.client
import json
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import httpx
from uvicorn.protocols.http.h11_impl import H11Protocol

from corral.config import Settings
from corral.pool.pool import Pool
from corral.server.app import create_app
from corral.server.drain import Drain
from corral.server.listener import Listener
from corral.server.serve import bind
from fake_engine import FakePool

MODEL = "tiny:latest"


class Server:
    """The application and what is behind it, mostly fakes; `do` runs a function on its event loop."""

    url: str
    transport: Mapping[str, Any] = MappingProxyType({})  # how httpx reaches it, where a URL does not do

    def __init__(self, settings: Settings, pool: FakePool | Pool):
        self.pool, self.store, self.drain = pool, pool.store, Drain()
        self.engine = getattr(pool, "engine", None)
        self.settings = settings
        self.ready = threading.Event()
        self.thread = threading.Thread(target=lambda: asyncio.run(self._run()))
        self.thread.start()
        self.ready.wait(10)

    async def _run(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.stopped = asyncio.Event()
        await self._serve(create_app(self.settings, self.store, self.pool, self.drain))
        await self.pool.close()

    async def _serve(self, app: Any) -> None:
        """Say that it is ready, and serve until `stopped`."""
        raise NotImplementedError

    def raw(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any, bytes]:
        """Status, headers and body of the answer to one request."""
        raise NotImplementedError

    def do(self, function: Callable[[], Any]) -> None:
        done = threading.Event()
        self.loop.call_soon_threadsafe(lambda: (function(), done.set()))
        assert done.wait(10)

    def gate(self) -> asyncio.Event:
        """An event that holds something back until `do(gate.set)`."""
        return asyncio.Event()

    def stop(self) -> None:
        self.do(self.drain.abort)
        self.do(self.stopped.set)
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

    def post(self, path: str, **body: Any) -> tuple[int, Any]:
        return self.request("POST", path, {"model": MODEL, **body})

    def lines(self, path: str, **body: Any) -> list[Any]:
        """A stream's objects: NDJSON lines, or SSE data without [DONE]."""
        status, _, data = self.raw("POST", path, {"model": MODEL, "stream": True, **body})
        assert status == 200, data
        texts = [line.removeprefix(b"data: ") for line in data.split(b"\n") if line]
        return [json.loads(text) for text in texts if text != b"[DONE]"]

    def idle(self) -> bool:
        """Nothing that a client asked for is left running."""
        return not (self.engine.running or self.pool.leases or self.pool.waiting or self.drain.in_flight)


class LiveServer(Server):
    """On a free port, with our own connections unless `connection` names others of uvicorn's."""

    def __init__(
        self, settings: Settings, pool: FakePool | Pool, connection: type[H11Protocol] | None = None
    ):
        self.socket = bind("127.0.0.1", 0)
        self.port = self.socket.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.connection = connection
        super().__init__(settings, pool)

    async def _serve(self, app: Any) -> None:
        listener = Listener(app)
        listener.config.http = self.connection or listener.config.http
        listener.stopped = self.stopped
        self.ready.set()
        await listener.serve([self.socket])

    def raw(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any, bytes]:
        data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        with contextlib.closing(connection):
            connection.request(method, path, data, {k.replace("_", "-"): v for k, v in headers.items()})
            response = connection.getresponse()
            return response.status, response.headers, response.read()

    def send(self, data: bytes) -> socket.socket:
        """A connection on which these bytes have been sent."""
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=30)
        connection.sendall(data)
        return connection


class AsgiServer(Server):
    """Without a port: httpx.ASGITransport calls the application. An answer comes when it is complete."""

    url = "http://localhost"

    def __init__(self, settings: Settings, pool: FakePool | Pool):
        self.transport = {"transport": _Transport(self)}
        super().__init__(settings, pool)

    async def _serve(self, app: Any) -> None:
        self.app = app
        self.ready.set()
        await self.stopped.wait()

    def raw(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any, bytes]:
        content = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        with httpx.Client(base_url=self.url, timeout=None, **self.transport) as client:
            renamed = {k.replace("_", "-"): v for k, v in headers.items()}
            response = client.request(method, path, content=content, headers=renamed)
            return response.status_code, response.headers, response.content


EVERY_WAY = (LiveServer, AsgiServer)


class _Transport(httpx.BaseTransport):
    """ASGITransport for clients that block: the application runs on its server's loop."""

    def __init__(self, server: AsgiServer):
        self.server = server

    def handle_request(self, request: Any) -> Any:
        library = sys.modules[type(request).__module__.partition(".")[0]]  # openai's httpx has another name
        future = asyncio.run_coroutine_threadsafe(self._answer(library, request), self.server.loop)
        return future.result()

    async def _answer(self, library: Any, request: Any) -> Any:
        response = await library.ASGITransport(self.server.app).handle_async_request(request)
        content = b"".join([part async for part in response.stream])
        return library.Response(response.status_code, headers=response.headers, content=content)
