"""The layers around the routes, and who may call which route."""

import asyncio
from typing import Any

import httpx
import pytest
from live_server import Server
from starlette.responses import PlainTextResponse

from corral.config import Settings
from corral.errors import ModelNotFound
from corral.server.app import create_app
from corral.server.dialects.ollama import OllamaText
from corral.server.dialects.ollama_models import OllamaModels
from corral.server.dialects.openai import OpenAI
from corral.server.faults import FaultLayer
from corral.server.health import Health
from corral.server.routes import CALLER, Access, Caller, Row, router
from fake_engine import FakePool, FakeStore

FOREIGN = "https://evil.example"


def answer(app: Any, path: str, method: str = "GET") -> httpx.Response:
    async def ask() -> httpx.Response:
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(app), base_url="http://localhost"
        ) as client:
            return await client.request(method, path)

    return asyncio.run(ask())


def routes_for(caller: Caller, *rows: Row) -> Any:
    """These rows, with every request sent by this caller."""
    inner = router(rows)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        scope[CALLER] = caller
        await inner(scope, receive, send)

    return FaultLayer(app, Settings())


@pytest.mark.parametrize("given", Access)
@pytest.mark.parametrize("needed", Access)
def test_route_answers_whom_its_row_allows(given: Access, needed: Access) -> None:
    async def hello(_: Any) -> Any:
        return PlainTextResponse("hello")

    app = routes_for(Caller(given, "you may not"), Row("GET", "/v1/x", hello, needed))
    reply = answer(app, "/v1/x")
    if given >= needed:
        assert (reply.status_code, reply.text) == (200, "hello")
    else:
        assert (reply.status_code, reply.json()["error"]["message"]) == (403, "you may not")


def test_changing_what_is_stored_is_for_admins_and_hardly_anything_for_anyone() -> None:
    rows = [row for table in (Health, OllamaModels, OllamaText, OpenAI) for row in table(None).routes()]
    by_access = {access: {row.path for row in rows if row.access == access} for access in Access}
    assert by_access[Access.ADMIN] == {"/api/pull", "/api/delete"}
    assert by_access[Access.ANYONE] == {"/", "/health"}


def test_foreign_page_may_see_that_a_server_is_there_but_not_read_it(server: Server) -> None:
    status, headers, _ = server.raw("GET", "/health", Origin=FOREIGN)
    assert (status, headers.get("access-control-allow-origin")) == (200, None)
    for method, path in (("GET", "/api/tags"), ("POST", "/api/pull"), ("DELETE", "/api/delete")):
        status, headers, body = server.raw(method, path, Origin=FOREIGN)
        assert (status, headers.get("access-control-allow-origin")) == (403, None)
        assert FOREIGN in body.decode()


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("GET", "/nowhere", None, 404),
        ("GET", "/v1/models/missing", None, 404),
        ("POST", "/api/chat", b"{", 400),
        ("POST", "/v1/completions", b" " * (17 << 20), 413),
        ("PUT", "/api/tags", b"", 405),
    ],
)
def test_error_reaches_the_page_that_asked(
    server: Server, method: str, path: str, body: bytes | None, status: int
) -> None:
    found, headers, _ = server.raw(method, path, body, Origin="http://localhost:3000")
    assert found == status
    assert headers["access-control-allow-origin"] == "http://localhost:3000"
    assert headers["content-type"] == "application/json; charset=utf-8"
    assert ("allow" in headers) == (status == 405)


@pytest.mark.parametrize("path", ["/v1/models", "/api/tags"])
def test_refused_host_is_told_in_the_apis_own_shape(server: Server, path: str) -> None:
    status, reply = server.request("GET", path, Host="evil.example")
    message = reply["error"]["message"] if path.startswith("/v1") else reply["error"]
    assert (status, "evil.example" in message) == (403, True)


@pytest.mark.parametrize(
    ("error", "status", "told"),
    [
        (ModelNotFound("x"), 404, "model 'x' not found"),
        (RuntimeError("secret"), 500, "internal server error"),
    ],
)
def test_fault_layer_tells_errors_and_keeps_secrets(error: Exception, status: int, told: str) -> None:
    async def failing(scope: Any, receive: Any, send: Any) -> None:
        raise error

    reply = answer(FaultLayer(failing, Settings()), "/api/x")
    assert (reply.status_code, reply.json()) == (status, {"error": told})


def test_error_after_the_headers_reaches_the_server_which_hangs_up() -> None:
    async def failing(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise RuntimeError("half way")

    with pytest.raises(RuntimeError, match="half way"):
        answer(FaultLayer(failing, Settings()), "/api/x")


def test_application_starts_and_stops_under_any_asgi_server() -> None:
    async def lifespan() -> list[str]:
        sent: list[str] = []

        async def receive() -> dict[str, str]:
            return {"type": "lifespan.startup" if not sent else "lifespan.shutdown"}

        async def send(message: dict[str, str]) -> None:
            sent.append(message["type"])

        pool = FakePool(FakeStore("tiny"))
        await create_app(Settings(), pool.store, pool)({"type": "lifespan"}, receive, send)
        return sent

    assert asyncio.run(lifespan()) == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
