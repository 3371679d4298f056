import os
import socket
import subprocess
import sys

import pytest
from fake_server import FakeServer
from terminal import Terminal


@pytest.fixture
def server():
    """A fake server."""
    server = FakeServer()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def environment(tmp_path, free_port):
    """The environment of a user with nothing, where nobody listens."""
    kept = {name: os.environ[name] for name in ("PATH", "PYTHONPATH", "LANG") if name in os.environ}
    return kept | {
        "HOME": str(tmp_path),
        "CORRAL_MODELS": str(tmp_path / "models"),
        "OLLAMA_HOST": f"127.0.0.1:{free_port}",
        "PIP_NO_INDEX": "1",
        "PIP_CONFIG_FILE": os.devnull,
        "PYTHONUTF8": "1",
        "TERM": "xterm",
    }


@pytest.fixture
def corral(environment):
    """Runs `corral ARGS...` in pipes; `server` points it at a fake one."""

    def run(*args, server=None, stdin="", **env):
        given = environment | ({"OLLAMA_HOST": server.host} if server else {}) | env
        command = [sys.executable, "-m", "corral.cli.main", *args]
        return subprocess.run(command, input=stdin, capture_output=True, text=True, env=given)

    return run


@pytest.fixture
def terminal(environment):
    """Runs `corral ARGS...` in a pseudo-terminal."""
    opened = []

    def run(*args, server, **env):
        given = environment | {"OLLAMA_HOST": server.host} | env
        opened.append(Terminal([sys.executable, "-m", "corral.cli.main", *args], given))
        return opened[-1]

    yield run
    for each in opened:
        each.close()
