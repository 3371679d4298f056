import socket
import threading

import pytest

from corral.cli.client import Client
from corral.cli.exits import ApiError, NoServer, exit_code


def answering(raw):
    """A server that says `raw` to whoever connects, once, and hangs up."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve():
        connection, _ = listener.accept()
        connection.recv(65536)
        connection.sendall(raw)
        connection.close()
        listener.close()

    threading.Thread(target=serve, daemon=True).start()
    return Client("127.0.0.1", listener.getsockname()[1])


def test_call_and_stream_give_json(server):
    client = Client("127.0.0.1", server.server_port)
    assert client.alive()
    assert client.call("GET", "/api/tags")["models"][0]["name"] == "tiny:latest"
    lines = list(client.stream("/api/pull", {"model": "other"}))
    assert lines == server.pull_steps


def test_nobody_there_is_told_apart_from_errors(free_port):
    client = Client("127.0.0.1", free_port)
    assert not client.alive()
    with pytest.raises(NoServer, match="corral serve") as caught:
        client.call("GET", "/api/tags")
    assert exit_code(caught.value) == 4


def test_an_address_to_listen_on_is_called_on_the_loopback():
    assert Client("0.0.0.0", 1).address == "http://127.0.0.1:1"
    assert Client("::", 1).address == "http://[::1]:1"


def test_errors_carry_the_servers_words_and_status(server):
    client = Client("127.0.0.1", server.server_port)
    with pytest.raises(ApiError, match="model 'x' not found") as caught:
        client.call("POST", "/api/show", {"model": "x"})
    assert caught.value.status == 404 and exit_code(caught.value) == 3


@pytest.mark.parametrize(("status", "code"), [(400, 2), (404, 3), (500, 1), (503, 1)])
def test_what_the_server_refuses_as_wrong_is_wrong_usage(status, code):
    assert exit_code(ApiError(status, "temperature must be between 0 and 100")) == code


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"garbage\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]",
        b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{}",
        b"HTTP/1.1 500 Oops\r\nContent-Length: 4\r\n\r\noops",
        b'HTTP/1.1 400 Bad\r\nContent-Length: 13\r\n\r\n{"error":null}',
        b'HTTP/1.1 200 OK\r\nContent-Length: 15\r\n\r\n{"error":"late"}',
    ],
)
def test_a_server_that_talks_nonsense_is_an_api_error(raw):
    with pytest.raises(ApiError):
        answering(raw).call("GET", "/x")


def test_an_error_line_in_a_stream_is_raised(server):
    server.pull_steps = [{"status": "pulling manifest"}, {"error": "disk full"}]
    with pytest.raises(ApiError, match="disk full"):
        list(Client("127.0.0.1", server.server_port).stream("/api/pull", {"model": "x"}))


def test_closing_a_stream_hangs_up(server):
    server.hang.set()
    chunks = Client("127.0.0.1", server.server_port).stream("/api/chat", {"model": "tiny", "messages": [{}]})
    next(chunks)
    chunks.close()
    assert server.gone.wait(10)
