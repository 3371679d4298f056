"""Runs the server until a signal: binds, serves, drains, and stops every engine."""

import asyncio
import errno
import functools
import gc
import logging
import signal
import socket
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from corral.config import Settings
from corral.engine.client import EngineClient, ReserveMemory
from corral.engine.process import Spare
from corral.engine.protocol import EngineSpec
from corral.errors import CorralError, UserError
from corral.pool.pool import Pool
from corral.server.drain import LAST_WORDS, Drain
from corral.store.local import Store

if TYPE_CHECKING:
    from corral.server.listener import Listener

log = logging.getLogger(__name__)

THREADS = 32  # tokenising, the store, downloads: mostly waiting

OnListening = Callable[[str, int], None]


def serve(
    settings: Settings,
    *,
    on_listening: OnListening | None = None,
    spare: Spare | None = None,
    preload: str = "",
) -> int:
    """Serve until SIGTERM or SIGINT, then drain; the exit code.

    `on_listening` gets the address in use, `spare` becomes the first model's process, `preload` names a model
    to load at once.
    """
    logging.basicConfig(
        level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    try:
        listener = bind(settings.host, settings.port)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    asyncio.run(_Serving(settings, listener, on_listening).run(spare, preload))
    return 0


def bind(host: str, port: int) -> socket.socket:
    """A listening socket; UserError says what is in the way."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise UserError(f"cannot listen on {host}: {error}") from None
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(2048)
    except OSError as error:
        listener.close()
        raise UserError(_bind_problem(host, port, error)) from None
    return listener


def _bind_problem(host: str, port: int, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return (
            f"port {port} of {host} is in use: another server, perhaps Ollama or corral itself, is running. "
            f"Stop it, or choose another port with OLLAMA_HOST={host}:{port + 1}"
        )
    if error.errno == errno.EACCES:
        return (
            f"port {port} needs rights that this user does not have; choose one above 1023 with OLLAMA_HOST"
        )
    return f"cannot listen on {host}:{port}: {error.strerror}"


class _Serving:
    """One run of the server."""

    def __init__(self, settings: Settings, listener: socket.socket, on_listening: OnListening | None):
        self.settings, self.socket, self.on_listening = settings, listener, on_listening
        self.drain = Drain()
        self.stop_asked = asyncio.Event()
        self.stop_at_once = asyncio.Event()

    async def run(self, spare: Spare | None, preload: str) -> None:
        loop = asyncio.get_running_loop()
        loop.set_default_executor(ThreadPoolExecutor(THREADS, thread_name_prefix="corral"))
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._signal)
        store = Store(self.settings.models)
        pool = Pool(store, self.settings, functools.partial(_start_engine, spare))
        loading = asyncio.create_task(_preload(pool, preload)) if preload else None
        # On a thread: what it imports must not keep the model's load, which has begun, from going on.
        server = await asyncio.to_thread(self._listener, store, pool)
        serving = asyncio.create_task(server.serve([self.socket]))
        if loading:
            loading.add_done_callback(_collect_garbage_from_now)
        else:
            _collect_garbage_from_now()
        try:
            if self.on_listening:
                self.on_listening(*self.socket.getsockname()[:2])
            await self._until_stop_is_asked(serving)
            await self._drain()
        finally:
            server.stopped.set()
            await serving
            await pool.close()
            if loading:
                await loading

    def _listener(self, store: Store, pool: Pool) -> "Listener":
        """What will answer; clients can already connect, and wait."""
        from corral.server.app import create_app
        from corral.server.listener import Listener

        return Listener(create_app(self.settings, store, pool, self.drain))

    def _signal(self) -> None:
        if self.stop_asked.is_set():
            self.stop_at_once.set()
        self.stop_asked.set()

    async def _until_stop_is_asked(self, serving: "asyncio.Task[None]") -> None:
        asked = asyncio.create_task(self.stop_asked.wait())
        await asyncio.wait({asked, serving}, return_when=asyncio.FIRST_COMPLETED)
        asked.cancel()

    async def _drain(self) -> None:
        """Refuse new work; wait for what runs; then end what is left with an error."""
        self.drain.draining = True
        if self.drain.in_flight:
            log.info(
                "stopping: %d requests have %g s to finish", self.drain.in_flight, self.settings.drain_timeout
            )
        hurry = asyncio.create_task(self.stop_at_once.wait())
        finish = asyncio.create_task(self.drain.wait(self.settings.drain_timeout))
        await asyncio.wait({hurry, finish}, return_when=asyncio.FIRST_COMPLETED)
        hurry.cancel()
        finish.cancel()
        if self.drain.in_flight:
            log.warning("stopping: %d requests are ended with an error", self.drain.in_flight)
            self.drain.abort()
            await self.drain.wait(LAST_WORDS)


def _collect_garbage_from_now(_: object = None) -> None:
    """The start is over: collect garbage from now on, but do not walk what has been imported."""
    gc.freeze()
    gc.enable()


async def _start_engine(
    spare: Spare | None, spec: EngineSpec, reserve: ReserveMemory, **timeouts: float
) -> EngineClient:
    return await EngineClient.start(spec, reserve, process=spare.take() if spare else None, **timeouts)


async def _preload(pool: Pool, name: str) -> None:
    """Load a model before anybody asks. Who asks is told what is wrong with it."""
    try:
        async with pool.lease(name):
            pass
    except CorralError as error:
        log.error("%s could not be loaded: %s", name, error)
