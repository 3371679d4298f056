"""What every route owes its callers: status codes, limits, hosts, origins, malformed bodies, disconnects."""

import asyncio
import contextlib
import json
import socket

import pytest
from live_server import MODEL, LiveServer, Server

from corral.server.work import OrderedSend
from fake_engine import Script

GENERATING = ["/api/generate", "/api/chat", "/v1/completions", "/v1/chat/completions"]
BODIES = {
    "/api/generate": {"model": MODEL, "prompt": "x"},
    "/api/chat": {"model": MODEL, "messages": [{"role": "user", "content": "x"}]},
    "/v1/completions": {"model": MODEL, "prompt": "x", "max_tokens": 100, "stream": True},
    "/v1/chat/completions": {"model": MODEL, "messages": [{"role": "user", "content": "x"}], "stream": True},
}
POSTS = [*GENERATING, "/api/show", "/api/pull"]


def message(path: str, reply: dict[str, object]) -> str:
    """The error's text, once the shape is right for the path's API."""
    if path.startswith("/v1/"):
        assert set(reply) == {"error"}
        assert set(reply["error"]) == {"message", "type", "param", "code"}
        return reply["error"]["message"]
    assert set(reply) == {"error"}
    return reply["error"]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nowhere", 404),
        ("GET", "/api/nowhere", 404),
        ("GET", "/v1/nowhere", 404),
        ("GET", "/api/chat", 405),
        ("POST", "/api/tags", 405),
        ("GET", "/v1/completions", 405),
        ("POST", "/v1/models", 405),
        ("GET", "/api/tags/", 404),
    ],
)
def test_unknown_path_and_wrong_method(steady: Server, method: str, path: str, status: int) -> None:
    found, reply = steady.request(method, path, {} if method == "POST" else None)
    assert found == status
    assert message(path, reply)


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_root_says_that_somebody_is_there(steady: Server, method: str) -> None:
    status, _, body = steady.raw(method, "/")
    assert (status, body) == (200, b"Ollama is running" if method == "GET" else b"")


def test_version_is_numbers_and_at_least_0_32(server: Server) -> None:
    version = server.request("GET", "/api/version")[1]["version"]
    assert [int(part) for part in version.split(".")] >= [0, 32, 0]


@pytest.mark.parametrize("path", POSTS)
@pytest.mark.parametrize(
    ("body", "named"),
    [
        (b"", "missing"),
        (b"{", "JSON"),
        (b"[]", "object"),
        (b"5", "object"),
        (b'"text"', "object"),
        (b"null", "object"),
        (b'{"model": "tiny", "x": NaN}', "x"),
        (b'{"model": Infinity}', "model"),
        (b'{"model": -Infinity}', "model"),
        (b'{"model": "\\ud800"}', "model"),
        (b'{"model": "\\udc00 x"}', "model"),
        (b'{"model": "\\ud83d\\ude00 \\ud83d"}', "model"),
        (b'{"model": "\xff\xfe"}', "model"),
        (b'{"model": "tiny"} trailing', ""),
        (b'{"model": 7}', "model"),
        (b'{"stream": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "stream"),
    ],
)
def test_malformed_body_is_400_and_names_what_is_wrong(
    steady: Server, path: str, body: bytes, named: str
) -> None:
    status, reply = steady.request("POST", path, body)
    assert status == 400, reply
    assert named in message(path, reply)


def test_deeply_nested_options_are_400(server: Server) -> None:
    deep = b'{"model": "tiny", "prompt": "x", "options": {"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}}"
    status, reply = server.request("POST", "/api/generate", deep)
    assert (status, reply) == (400, {"error": "the request body is nested too deeply"})


@pytest.mark.parametrize("path", POSTS)
def test_body_of_20_mb_is_413_and_the_server_goes_on(steady: Server, path: str) -> None:
    body = json.dumps({"model": MODEL, "prompt": "x" * 20_000_000}).encode()
    status, reply = steady.request("POST", path, body)
    assert status == 413
    assert "16 MiB" in message(path, reply)
    assert steady.request("GET", "/health")[0] == 200


def test_chunked_body_without_a_length_is_413_too(live: LiveServer) -> None:
    head = b"POST /api/chat HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    with live.send(head) as connection:
        with contextlib.suppress(OSError):
            for _ in range(20):
                connection.sendall(b"100000\r\n" + b" " * 0x100000 + b"\r\n")
        assert connection.recv(100).startswith(b"HTTP/1.1 413")


@pytest.mark.parametrize(
    ("host", "allowed"),
    [
        ("localhost", True),
        ("127.0.0.1:11434", True),
        ("[::1]:11434", True),
        ("192.168.1.5", True),
        ("corral.localhost:80", True),
        ("box.local", True),
        ("host.docker.internal", True),
        ("LOCALHOST.", True),
        (socket.gethostname(), True),
        ("evil.example", False),
        ("evil.example:11434", False),
        ("localhost.evil.example", False),
        ("127.0.0.1.evil.example", False),
        ("a/?x=", False),
        ("8.8.8.8", False),
        ("user@localhost", False),
    ],
)
def test_host_header_guards_a_loopback_server(steady: Server, host: str, allowed: bool) -> None:
    for path in ("/api/tags", "/v1/models", "/"):
        assert steady.request("GET", path, Host=host)[0] == (200 if allowed else 403)


@pytest.mark.parametrize(
    ("origin", "allowed"),
    [
        ("http://localhost:3000", True),
        ("https://127.0.0.1", True),
        ("app://obsidian.md", True),
        ("vscode-webview://abc", True),
        ("https://evil.example", False),
        ("http://localhost.evil.example", False),
        ("null", False),
    ],
)
def test_origin_of_a_web_page_is_checked(steady: Server, origin: str, allowed: bool) -> None:
    status, headers, _ = steady.raw("GET", "/api/tags", Origin=origin)
    assert status == (200 if allowed else 403)
    assert headers.get("access-control-allow-origin") == (origin if allowed else None)
    headers_asked = {"Access_Control_Request_Method": "POST", "Origin": origin}
    status, headers, _ = steady.raw("OPTIONS", "/api/chat", **headers_asked)
    assert status == (204 if allowed else 403)
    assert ("Authorization" in headers.get("access-control-allow-headers", "")) == allowed


def test_bearer_key_is_ignored(server: Server) -> None:
    assert server.request("GET", "/v1/models", Authorization="Bearer anything")[0] == 200


def request_bytes(path: str) -> bytes:
    body = json.dumps(BODIES[path]).encode()
    return f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


@pytest.mark.parametrize("path", GENERATING)
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_disconnect_while_sending_leaves_nothing(live: LiveServer, path: str, share: float) -> None:
    data = request_bytes(path)
    live.send(data[: int(len(data) * share)]).close()
    assert live.request("GET", "/health")[0] == 200
    live.wait_for(live.idle)
    assert not live.engine.seen


@pytest.mark.parametrize("path", GENERATING)
@pytest.mark.parametrize("streaming", [True, False])
def test_disconnect_while_the_model_loads_leaves_nothing(
    live: LiveServer, path: str, streaming: bool
) -> None:
    live.pool.load_gate = live.gate()
    connection = live.send(request_bytes(path) if streaming else plain_bytes(path))
    live.wait_for(lambda: live.pool.waiting == 1)
    connection.close()
    live.wait_for(live.idle)
    assert not live.engine.seen


@pytest.mark.parametrize("path", GENERATING)
@pytest.mark.parametrize("streaming", [True, False])
def test_disconnect_before_the_first_token_cancels(
    live: LiveServer, script: Script, path: str, streaming: bool
) -> None:
    script.gate = live.gate()
    connection = live.send(request_bytes(path) if streaming else plain_bytes(path))
    live.wait_for(lambda: len(live.engine.running) == 1)
    connection.close()
    live.wait_for(live.idle)
    assert live.engine.cancelled == 1


@pytest.mark.parametrize("path", GENERATING)
def test_disconnect_in_mid_stream_cancels(live: LiveServer, script: Script, path: str) -> None:
    script.endless, script.pause = True, 0.001
    connection = live.send(request_bytes(path))
    received = b""
    while received.count(b"\n") < 20:
        received += connection.recv(4096)
    assert received.startswith(b"HTTP/1.1 200")
    connection.close()
    live.wait_for(live.idle)
    assert live.engine.cancelled == 1


def test_disconnect_of_a_request_with_many_replies_cancels_them_all(live: LiveServer, script: Script) -> None:
    script.endless, script.pause = True, 0.001
    body = json.dumps(BODIES["/v1/completions"] | {"n": 4, "prompt": ["a", "b"], "max_tokens": 10}).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
    connection = live.send(head.encode() + body)
    live.wait_for(lambda: len(live.engine.running) == 8)
    connection.close()
    live.wait_for(live.idle)
    assert live.engine.cancelled == 8


def test_one_client_that_leaves_does_not_disturb_another(live: LiveServer, script: Script) -> None:
    script.gate = live.gate()
    leaving = live.send(request_bytes("/api/generate"))
    staying = live.send(request_bytes("/api/generate"))
    live.wait_for(lambda: len(live.engine.running) == 2)
    leaving.close()
    live.wait_for(lambda: len(live.engine.running) == 1)
    live.do(script.gate.set)
    received = b""
    while b'"done":true' not in received:
        received += staying.recv(4096)
    staying.close()


def plain_bytes(path: str) -> bytes:
    body = json.dumps(BODIES[path] | {"stream": False}).encode()
    return f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


def test_stream_to_a_client_of_http_1_0_has_no_chunk_frames(live: LiveServer) -> None:
    data = request_bytes("/api/generate").replace(b"HTTP/1.1", b"HTTP/1.0")
    with live.send(data) as connection:
        received = b""
        while part := connection.recv(65536):
            received += part
    lines = received.partition(b"\r\n\r\n")[2].splitlines()
    assert "".join(json.loads(line)["response"] for line in lines) == "Hello world"
    assert json.loads(lines[-1])["done"]


def test_pipelined_requests_are_all_answered(live: LiveServer) -> None:
    with live.send(plain_bytes("/api/generate") * 3) as connection:
        received = b""
        while received.count(b'"done":true') < 3:
            part = connection.recv(65536)
            assert part
            received += part


def test_health_is_live_and_ready_tells_of_a_stuck_engine(server: Server) -> None:
    assert server.raw("GET", "/health")[0] == 200
    assert server.raw("GET", "/health/ready")[0] == 200
    server.post("/api/generate", prompt="x", stream=False)
    _, _, body = server.raw("GET", "/health/ready")
    [model] = json.loads(body)["models"]
    assert model["name"] == "tiny:latest"
    assert (model["num_blocks"], model["block_size"], model["blocks_used"]) == (64, 16, 0)
    server.engine.alive = False
    status, _, body = server.raw("GET", "/health/ready")
    assert (status, b"tiny:latest" in body) == (503, True)
    assert server.raw("GET", "/health")[0] == 200


@pytest.mark.parametrize("path", GENERATING)
def test_draining_refuses_new_work_and_says_when_to_come_back(server: Server, path: str) -> None:
    server.do(lambda: setattr(server.drain, "draining", True))
    status, headers, body = server.raw("POST", path, BODIES[path])
    assert (status, headers["retry-after"]) == (503, "5")
    assert "shutting down" in message(path, json.loads(body))
    assert server.raw("GET", "/health/ready")[0] == 503
    assert server.raw("GET", "/api/tags")[0] == 200


@pytest.mark.parametrize("path", GENERATING)
def test_abort_ends_a_stream_with_an_error(live: LiveServer, script: Script, path: str) -> None:
    script.endless, script.pause = True, 0.001
    with live.send(request_bytes(path)) as connection:
        received = b""
        while received.count(b"\n") < 20:
            received += connection.recv(4096)
        live.do(live.drain.abort)
        while not received.endswith(b"0\r\n\r\n"):
            part = connection.recv(65536)
            assert part
            received += part
    assert b"shut down before the answer was complete" in received
    assert (b"[DONE]" in received) == path.startswith("/v1/")
    live.wait_for(live.idle)


def test_abort_of_a_request_without_an_answer_yet_is_503(live: LiveServer, script: Script) -> None:
    script.gate = live.gate()
    with live.send(plain_bytes("/v1/completions")) as connection:
        live.wait_for(lambda: len(live.engine.running) == 1)
        live.do(live.drain.abort)
        assert connection.recv(4096).startswith(b"HTTP/1.1 503")


def test_parts_of_a_stream_are_in_order_before_the_end_where_send_is_slow() -> None:
    sent: list[bytes] = []

    async def slow_send(message: dict[str, object]) -> None:
        await asyncio.sleep(0)
        sent.append(message["body"])

    async def scenario() -> None:
        send = OrderedSend(slow_send)
        for number in range(9):
            send.write_part(b"%d" % number)
            if number % 4 == 0:
                await asyncio.sleep(0)
        send.write_part(b"")
        await send({"type": "http.response.body", "body": b"end"})

    asyncio.run(scenario())
    assert b"".join(sent) == b"012345678end"
    assert sent[-1] == b"end"
