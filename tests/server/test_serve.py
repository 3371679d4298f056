"""The server process: its signals, its exit code, its port."""

import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).parent
PROGRAM = HERE / "serve_fakes.py"


class Process:
    def __init__(self, drain: float, *port: str, **script: object):
        path = os.pathsep.join([str(HERE.parent), *sys.path])
        self.popen = subprocess.Popen(
            [sys.executable, str(PROGRAM), json.dumps(script), str(drain), *port],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": path},
        )
        self.connections: list[http.client.HTTPConnection | http.client.HTTPResponse] = []
        line = self.popen.stdout.readline()
        self.port = int(line) if line.strip() else 0

    def stream(self, path: str = "/api/generate") -> http.client.HTTPResponse:
        """An open stream of which the first line has come."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        self.connections.append(connection)
        body = {"model": "tiny", "prompt": "x", "stream": True}
        connection.request("POST", path, json.dumps(body))
        response = connection.getresponse()
        self.connections.append(response)
        assert response.readline().strip()
        return response

    def status(self, path: str) -> int:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        with contextlib.closing(connection):
            connection.request("GET", path)
            return connection.getresponse().status

    def end(self) -> tuple[int, str, str]:
        out, err = self.popen.communicate(timeout=60)
        for connection in self.connections:
            connection.close()
        return self.popen.returncode, out, err


@pytest.fixture
def processes() -> Iterator[list[Process]]:
    started: list[Process] = []
    yield started
    for process in started:
        if process.popen.poll() is None:
            process.popen.kill()
            process.popen.communicate()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_when_idle_ends_with_0_and_stops_the_engines(processes: list[Process], number: int) -> None:
    processes.append(process := Process(5))
    assert process.status("/health") == 200
    process.popen.send_signal(number)
    code, out, err = process.end()
    assert (code, out) == (0, "stopped\n"), err


def test_sigterm_lets_a_stream_finish_while_new_work_is_refused(processes: list[Process]) -> None:
    processes.append(process := Process(30, text="x" * 40, pause=0.05))
    response = process.stream()
    process.popen.send_signal(signal.SIGTERM)
    while process.status("/health/ready") != 503:
        time.sleep(0.01)
    lines = [json.loads(line) for line in response]
    assert (lines[-1]["done"], lines[-1]["eval_count"]) == (True, 41)
    assert process.end()[:2] == (0, "stopped\n")


@pytest.mark.parametrize("path", ["/api/generate", "/v1/completions"])
def test_sigterm_ends_an_endless_stream_with_an_error(processes: list[Process], path: str) -> None:
    processes.append(process := Process(0.3, endless=True, pause=0.01))
    response = process.stream(path)
    process.popen.send_signal(signal.SIGTERM)
    rest = response.read().decode()
    assert "shut down before the answer was complete" in rest
    assert process.end()[:2] == (0, "stopped\n")


def test_second_signal_does_not_wait_for_the_drain(processes: list[Process]) -> None:
    processes.append(process := Process(3600, endless=True, pause=0.01))
    response = process.stream()
    process.popen.send_signal(signal.SIGTERM)
    while process.status("/health/ready") != 503:
        time.sleep(0.01)
    process.popen.send_signal(signal.SIGTERM)
    assert "error" in response.read().decode()
    assert process.end()[:2] == (0, "stopped\n")


def test_port_in_use_is_told_with_its_remedy(processes: list[Process]) -> None:
    processes.append(first := Process(5))
    processes.append(second := Process(5, str(first.port)))
    code, _, err = second.end()
    assert code == 1
    assert "in use" in err and "OLLAMA_HOST" in err


def test_server_process_imports_no_array_library() -> None:
    program = "import sys, corral.server.serve; print('numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_half_sent_headers_are_given_up(
    monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    monkeypatch.setattr("corral.server.connection.HEADER_TIMEOUT", 0.2)
    server = request.getfixturevalue("ours")
    for beginning in (b"", b"GET /health HT"):
        with server.send(beginning) as connection:
            assert connection.recv(4096) == b""
    with server.send(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n") as connection:
        while not connection.recv(4096).endswith(b"ok"):
            pass
        connection.sendall(b"GET /hea")
        assert connection.recv(4096) == b""


def test_body_that_does_not_come_is_408(
    monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    monkeypatch.setattr("corral.server.limits.BODY_TIMEOUT", 0.2)
    server = request.getfixturevalue("ours")
    with server.send(
        b"POST /api/chat HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\n{"
    ) as connection:
        assert connection.recv(4096).startswith(b"HTTP/1.1 408")


def test_client_that_does_not_read_is_cancelled(
    monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    monkeypatch.setattr("corral.server.connection.SLOW_READER", 0.2)
    server = request.getfixturevalue("ours")
    script = request.getfixturevalue("script")
    script.endless, script.text = True, "x" * 1000
    body = b'{"model":"tiny","prompt":"x"}'
    head = b"POST /api/generate HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body)
    with server.send(head + body):
        server.wait_for(lambda: server.engine.cancelled == 1)
        server.wait_for(server.idle)
