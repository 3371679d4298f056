"""A live server for each test."""

from collections.abc import Iterator

import pytest
from live_server import MODEL, LiveServer

from corral.config import Settings
from fake_engine import FakeEngine, FakePool, FakeStore, Script


@pytest.fixture
def script() -> Script:
    """What the engine says; tests change it."""
    return Script()


@pytest.fixture
def server(script: Script) -> Iterator[LiveServer]:
    """A server with two models, context 128."""
    store = FakeStore(MODEL, "team/other:q4")
    live = LiveServer(Settings(), FakePool(store, FakeEngine(script)))
    yield live
    live.stop()


@pytest.fixture(scope="module")
def steady() -> Iterator[LiveServer]:
    """The same for a whole module of requests that are refused and so leave no trace."""
    live = LiveServer(Settings(), FakePool(FakeStore(MODEL, "team/other:q4")))
    yield live
    live.stop()
