"""An engine's process as the server sees it: started, given a model, ended.

Light to import: the command starts a process first of all, and imports the rest while that one imports what
an engine needs.
"""

import contextlib
import signal
import socket
import subprocess
import sys
import time

from corral.config import module_path

_POLL = 0.005  # seconds from one check to the next whether a process has ended


class EngineProcess:
    """A process that waits for a spec and then speaks `engine/protocol`; `socket` is the server's end."""

    def __init__(self) -> None:
        self.socket, theirs = socket.socketpair()
        with theirs:
            self._popen = subprocess.Popen(
                # -P: the current folder is no place to import from
                [sys.executable, "-P", "-m", "corral.engine.worker", str(theirs.fileno())],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                env=_environment(),
                start_new_session=True,  # Ctrl-C is for the server, which lets requests finish
            )
        self.pid = self._popen.pid

    def give_spec(self, spec: bytes) -> None:
        """Send the spec of the model to load; at most once."""
        assert self._popen.stdin is not None
        with contextlib.suppress(BrokenPipeError), self._popen.stdin:  # its socket tells of its death
            self._popen.stdin.write(spec)

    def close(self) -> None:
        """End a process that has no model yet."""
        self.give_spec(b"")
        self.socket.close()

    @property
    def runs(self) -> bool:
        """Whether the process has not ended."""
        return self._popen.poll() is None

    def signal(self, number: signal.Signals) -> None:
        """Send a signal; one that comes too late is no mistake."""
        self._popen.send_signal(number)

    async def ends_within(self, seconds: float) -> bool:
        """Whether the process ends within so many seconds. Polling is cheaper than a thread that waits."""
        import asyncio  # here: it takes longer than all else in this file

        deadline = time.monotonic() + seconds
        while self.runs:
            if time.monotonic() > deadline:
                return False
            await asyncio.sleep(_POLL)
        return True

    async def ending(self) -> str:
        """How the process ended, in words; waits until it has."""
        await self.ends_within(float("inf"))
        status = self._popen.returncode
        return f"was ended by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"


class Spare:
    """A process started before anybody asks for a model: the first load finds all its imports done."""

    def __init__(self) -> None:
        self._process: EngineProcess | None = EngineProcess()

    def take(self) -> EngineProcess:
        """A process to load a model in: the spare one, or else a new one."""
        process, self._process = self._process, None
        if process is not None and not process.runs:
            process.close()
            process = None
        return process or EngineProcess()

    def close(self) -> None:
        """End the process if nobody has taken it."""
        process, self._process = self._process, None
        if process is not None:
            process.close()


def _environment() -> dict[str, str]:
    """Nothing of the server's own environment: an engine has no use for keys and proxies."""
    return {
        "PYTHONPATH": module_path(),
        "PYTHONUTF8": "1",
        "OPENBLAS_NUM_THREADS": "1",  # numpy would make threads and buffers that nothing uses
    }
