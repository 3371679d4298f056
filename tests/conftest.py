"""Fixtures for every test: real models are found or fetched once, or the test is skipped."""

import os
from pathlib import Path

import pytest


def _real_model(name: str, file: str) -> Path:
    """The GGUF of a catalogue model: from CORRAL_TEST_MODELS, from the store, or pulled into it."""
    folder = os.environ.get("CORRAL_TEST_MODELS")
    if folder and (Path(folder) / file).exists():
        return Path(folder) / file
    from corral.config import load_settings
    from corral.errors import CorralError
    from corral.store.local import Store
    from corral.store.names import ModelName
    from corral.store.pull import pull

    store = Store(load_settings().models)
    try:
        for _ in pull(store, name):
            pass
        return store.find(ModelName.parse(name)).path
    except CorralError as error:
        pytest.skip(f"{name} cannot be had here: {error}")


@pytest.fixture(scope="session")
def smollm2_path() -> Path:
    """SmolLM2-135M-Instruct, Q4_1."""
    return _real_model("smollm2:135m", "smollm2.gguf")


@pytest.fixture(scope="session")
def gemma3_path() -> Path:
    """Gemma 3 270M, Q4_K_M."""
    return _real_model("gemma3:270m", "gemma3.gguf")
