"""A server that runs for as long as one command does."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Generator

from corral.cli.client import LOCAL, Client
from corral.cli.exits import NoServer
from corral.config import Settings, child_environment
from corral.errors import CorralError

SERVE = [sys.executable, "-m", "corral.cli.main", "serve", "--json", "--with-parent"]
_STOP = 10.0  # seconds for a server to stop when asked


@contextlib.contextmanager
def any_server(settings: Settings, *, verbose: bool = False) -> Generator[Client, None, None]:
    """A client of the server that the settings name; if none answers on this machine, of a private one."""
    client = Client.of(settings)
    if client.alive():
        yield client
        return
    if settings.host not in LOCAL:
        raise NoServer(client.address)
    if verbose:
        print("no server answers: starting one for this command", file=sys.stderr)
    with private_server() as own:
        yield own


@contextlib.contextmanager
def private_server() -> Generator[Client, None, None]:
    """A client of a `corral serve` on a free port, which is stopped at the end whatever happens."""
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            SERVE,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            env=child_environment(OLLAMA_HOST="127.0.0.1:0"),
            start_new_session=True,  # the terminal's Ctrl-C is for the command, not for the server
        )
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line:
                log.seek(0)
                last_words = log.read()[-2000:].decode("utf-8", "replace").strip()
                raise CorralError(f"the server did not start: {last_words}")
            yield Client("127.0.0.1", json.loads(line)["port"])
        finally:
            _stop(process)


def _stop(process: "subprocess.Popen[bytes]") -> None:
    for pipe in (process.stdin, process.stdout):
        if pipe:
            pipe.close()
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    try:
        process.wait(_STOP)
    except subprocess.TimeoutExpired:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
