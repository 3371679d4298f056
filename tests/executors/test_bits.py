"""The native executor's results for the golden passages are the same bits as when they were stored.

`scripts/golden_bits.py` stores them; each instruction set has its own.
"""

import functools
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from batches import score
from corral.engine.engine import Engine, EngineOptions
from corral.models.table import build_program
from corral.types import SamplingParams, Scores
from corral.weights.gguf import open_gguf
from corral.weights.gguf_source import GGUFSource

GOLDENS = Path(__file__).parent.parent / "goldens"
FILE = GOLDENS / "bits.json"
PASSAGES = ("chat", "code", "english", "json", "multilingual", "numbers")
NEW_TOKENS = 24


def compute_bits(path: Path, model: str, isa: str) -> dict[str, Any]:
    """For each passage greedy ids with their log-probs' bits, and a digest of all positions' top 20."""
    from corral.executors.native import NativeExecutor

    with open_gguf(path) as file, np.load(GOLDENS / f"{model}.npz") as arrays:
        program = build_program(GGUFSource(file))
        executor = NativeExecutor(
            program,
            num_blocks=40 * len(program.cache.groups),
            max_tokens=256,
            max_sequences=2,
            threads=2,
            isa=isa,
        )
        engine = Engine(
            executor, EngineOptions(context_length=program.context_length, vocab_size=program.vocab_size)
        )
        return {
            passage: {
                "scores": _score_digest(executor, arrays[f"{passage}.tokens"]),
                "greedy": _greedy(engine, arrays[f"{passage}.greedy_prompt"].tolist()),
            }
            for passage in PASSAGES
        }


def _score_digest(executor: Any, tokens: np.ndarray) -> str:
    result = score(executor, tokens)
    digest = hashlib.sha256()
    for array in (result.tokens, result.logprobs, result.top_tokens, result.top_logprobs):
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _greedy(engine: Engine, prompt: list[int]) -> dict[str, list[Any]]:
    engine.add(1, prompt, SamplingParams(temperature=0, max_tokens=NEW_TOKENS), Scores(logprobs=0))
    tokens: list[int] = []
    logprobs: list[str] = []
    while engine.has_work:
        for output in engine.step():
            tokens += output.tokens
            logprobs += [np.float32(entry.logprob).tobytes().hex() for entry in output.logprobs]
    return {"tokens": tokens, "logprobs": logprobs}


@functools.cache
def stored_bits() -> dict[str, dict[str, dict[str, Any]]]:
    bits: dict[str, dict[str, dict[str, Any]]] = json.loads(FILE.read_text())
    return bits


@pytest.mark.model
@pytest.mark.parametrize("model", ["smollm2", "gemma3"])
@pytest.mark.parametrize("isa", [pytest.param("scalar", marks=pytest.mark.slow), "avx2", "avx512vnni"])
def test_golden_passages_have_the_stored_bits(model: str, isa: str, request: pytest.FixtureRequest) -> None:
    native = pytest.importorskip(
        "corral._native", reason="the native module is not built", exc_type=ImportError
    )
    if isa not in native.isas():
        pytest.skip(f"this processor has no {isa}")
    path: Path = request.getfixturevalue(f"{model}_path")
    assert compute_bits(path, model, isa) == stored_bits()[model][isa]
