"""Fixtures for every test: real models are found or fetched once, or the test is skipped."""

import contextlib
import os
from pathlib import Path

import pytest

from corral.errors import ModelNotFound, PullFailed
from corral.server.details import model_facts
from corral.store.local import Store
from corral.store.pull import pull

CACHE = Path(__file__).resolve().parent.parent / ".test-models"


def _real_model(name: str, file: str) -> Path:
    """The GGUF of a catalogue model: from CORRAL_TEST_MODELS, or pulled into the checkout's store."""
    folder = os.environ.get("CORRAL_TEST_MODELS")
    if folder and (Path(folder) / file).exists():
        return Path(folder) / file
    store = Store(CACHE)
    try:
        with contextlib.suppress(ModelNotFound):
            return store.find(name).path
        for _ in pull(store, name, inspect=model_facts):
            pass
        return store.find(name).path
    except PullFailed as error:
        pytest.skip(f"{name} cannot be had here: {error}")


@pytest.fixture(scope="session")
def smollm2_path() -> Path:
    """SmolLM2-135M-Instruct, Q4_1."""
    return _real_model("smollm2:135m", "smollm2.gguf")


@pytest.fixture(scope="session")
def gemma3_path() -> Path:
    """Gemma 3 270M, Q4_K_M."""
    return _real_model("gemma3:270m", "gemma3.gguf")
