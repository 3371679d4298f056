"""The goldens are what transformers computes: made again, where it is installed, and compared."""

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from families import checkpoints
from families.cases import CASES

SCRIPT = Path(__file__).parents[2] / "scripts" / "family_goldens.py"

pytestmark = pytest.mark.peer


@pytest.fixture(scope="module")
def script() -> ModuleType:
    for name in ("torch", "transformers"):
        pytest.importorskip(name)
    spec = importlib.util.spec_from_file_location(SCRIPT.stem, SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", [case.name for case in CASES])
def test_transformers_computes_the_golden(script: ModuleType, name: str) -> None:
    described = checkpoints.read_case(name)
    assert script.describe(described["published"])["tensors"] == described["tensors"]
    found = script.golden(script.score(described["published"], checkpoints.weights(described)))
    with np.load(checkpoints.FOLDER / "goldens" / f"{name}.npz") as golden:
        for field in ("top_logprobs", "next_logprobs"):
            np.testing.assert_allclose(found[field], golden[field], rtol=0, atol=1e-4)
