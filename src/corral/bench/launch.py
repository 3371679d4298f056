"""Starts a server for a while, sees it answer, and ends it with all its children."""

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

from corral.bench.address import Address
from corral.bench.dialects import DIALECTS, Ask
from corral.bench.exchange import BadReply, fetch, plain
from corral.bench.machine import ProcessTree
from corral.bench.peers import Peer, Start
from corral.bench.target import Target, ask
from corral.config import child_environment
from corral.engine.parent import die_with_parent
from corral.errors import ServiceError

_STOP = 20.0  # seconds for a server to end when asked
_LAST_WORDS = 600  # characters of a failed server's log


class DidNotStart(ServiceError):
    """A server ended, or did not answer, before it could be measured."""


@dataclass(frozen=True, slots=True)
class Launched:
    """A server that was started and has answered once."""

    target: Target
    tree: ProcessTree
    first_token: float  # seconds from the start of its process
    process: "subprocess.Popen[bytes]"

    @property
    def alive(self) -> bool:
        """Whether the server's process is still there."""
        return self.process.poll() is None


@contextlib.contextmanager
def launched(peer: Peer, start: Start, limit: float) -> Iterator[Launched]:
    """Start a server, and yield it once it has loaded its model and answered; end it afterwards.

    Raises DidNotStart, with the last lines of its log, if it does not answer within `limit` seconds.
    """
    with tempfile.TemporaryFile() as log:
        began = time.perf_counter()
        process = _spawn(peer, start, log)
        try:
            address = Address("127.0.0.1", start.port)
            target = Target(address, start.model, peer.kind, DIALECTS[peer.kind.dialect])
            _wait_healthy(address, process, began + limit, log)
            reply = asyncio.run(ask(target, Ask("Once upon a time", 2)))
            if reply.error:
                raise DidNotStart(f"{reply.error}. {_last_words(log)}")
            yield Launched(target, ProcessTree(process.pid), reply.arrivals[0] - began, process)
        finally:
            _end(process)


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _spawn(peer: Peer, start: Start, log: IO[bytes]) -> "subprocess.Popen[bytes]":
    try:
        return subprocess.Popen(
            peer.command(start),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=child_environment(**peer.environment(start)),
            start_new_session=True,  # the terminal's Ctrl-C is for us
            preexec_fn=die_with_parent,  # no server is left on the machine
        )
    except OSError as error:
        raise DidNotStart(f"{start.program} cannot be run: {error.strerror}") from None


def _wait_healthy(
    address: Address, process: "subprocess.Popen[bytes]", deadline: float, log: IO[bytes]
) -> None:
    pause = 0.002
    while process.poll() is None:
        if _listens(address):
            with contextlib.suppress(BadReply):  # 503 while it loads
                asyncio.run(fetch(address, "/health"))
                return
        if time.perf_counter() > deadline:
            raise DidNotStart(f"it did not answer in time. {_last_words(log)}")
        time.sleep(pause)
        pause = min(0.25, pause * 1.01)  # a server that takes minutes needs the processor
    raise DidNotStart(f"it ended with status {process.returncode}. {_last_words(log)}")


def _listens(address: Address) -> bool:
    """Whether somebody accepts connections; cheap enough to ask while a start of 0.3 s is timed."""
    with contextlib.suppress(OSError), socket.create_connection((address.host, address.port), timeout=1):
        return True
    return False


def _last_words(log: IO[bytes]) -> str:
    size = log.seek(0, os.SEEK_END)
    log.seek(max(0, size - 4 * _LAST_WORDS))
    return plain(log.read().decode("utf-8", "replace"))[-_LAST_WORDS:]


def _end(process: "subprocess.Popen[bytes]") -> None:
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    try:
        process.wait(_STOP)
    except subprocess.TimeoutExpired:
        pass
    finally:
        with contextlib.suppress(ProcessLookupError):  # also what it leaves behind
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
