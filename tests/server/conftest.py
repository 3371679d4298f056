"""A server for each test, reached in each way that the test can bear."""

from collections.abc import Iterator

import pytest
from live_server import EVERY_WAY, MODEL, LiveServer, Server
from uvicorn.protocols.http.h11_impl import H11Protocol

from corral.config import Settings
from fake_engine import FakeEngine, FakePool, FakeStore, Script


@pytest.fixture
def script() -> Script:
    """What the engine says; tests change it."""
    return Script()


def two_models(script: Script | None = None) -> FakePool:
    """Two models with a context of 128 tokens."""
    return FakePool(FakeStore(MODEL, "team/other:q4"), FakeEngine(script or Script()))


@pytest.fixture(params=EVERY_WAY)
def server(request: pytest.FixtureRequest, script: Script) -> Iterator[Server]:
    """Reached through sockets, and through httpx.ASGITransport."""
    server = request.param(Settings(), two_models(script))
    yield server
    server.stop()


@pytest.fixture(scope="module", params=EVERY_WAY)
def steady(request: pytest.FixtureRequest) -> Iterator[Server]:
    """The same for a whole module of requests that are refused and so leave no trace."""
    server = request.param(Settings(), two_models())
    yield server
    server.stop()


@pytest.fixture
def ours(script: Script) -> Iterator[LiveServer]:
    """Over our own connections, for what only they do."""
    live = LiveServer(Settings(), two_models(script))
    yield live
    live.stop()


@pytest.fixture(params=[None, H11Protocol], ids=["ours", "uvicorns"])
def live(request: pytest.FixtureRequest, script: Script) -> Iterator[LiveServer]:
    """For what clients do with connections: over ours, and over uvicorn's, which know no more than ASGI."""
    live = LiveServer(Settings(), two_models(script), request.param)
    yield live
    live.stop()
