"""The real models against the float32 truth in tests/goldens (how it was made: tests/goldens/README.md)."""

import functools
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from batches import Part, blocks_for, make_batch, score, step
from corral.engine.engine import Engine, EngineOptions
from corral.executors.batch import Executor, StepResult
from corral.executors.reference import ReferenceExecutor
from corral.models.program import Program
from corral.models.table import build_program
from corral.types import SamplingParams, Scores, TokenLogprob
from corral.weights.open import open_source
from hf_export import export_folder

GOLDENS = Path(__file__).parent.parent / "goldens"
PASSAGES = ("chat", "code", "english", "json", "multilingual", "numbers")
QUICK = ("chat", "code")
MAX_TOKENS = 256
NEAR_TIE = 1e-3  # where the truth's first two log-probs are closer, either may come first
# llama.cpp's figures for the same files and positions: what a quantised executor must not fall behind.
LLAMA_CPP = json.loads((GOLDENS / "llama_cpp.json").read_text())

pytestmark = pytest.mark.model


@dataclass(frozen=True)
class Golden:
    """A passage's truth: position i predicts token i + 1."""

    tokens: np.ndarray  # [N]
    top_ids: np.ndarray  # [N, 20]
    top_logprobs: np.ndarray  # [N, 20]
    next_logprobs: np.ndarray  # [N - 1]
    greedy_prompt: np.ndarray
    greedy: np.ndarray  # [48]


@functools.cache
def load_goldens(model: str) -> dict[str, Golden]:
    with np.load(GOLDENS / f"{model}.npz") as arrays:
        fields = Golden.__dataclass_fields__
        return {name: Golden(*(arrays[f"{name}.{field}"] for field in fields)) for name in PASSAGES}


@pytest.fixture(scope="module", params=["smollm2", "gemma3"])
def model(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def program(model: str, request: pytest.FixtureRequest) -> Iterator[Program]:
    with open_source(request.getfixturevalue(f"{model}_path")) as source:
        yield build_program(source)


@pytest.fixture(scope="module")
def reference(program: Program) -> Iterator[Executor]:
    executor = ReferenceExecutor(program, num_blocks=20 * len(program.cache.groups), max_tokens=MAX_TOKENS)
    yield executor
    executor.close()


@pytest.fixture(scope="module")
def native(program: Program) -> Iterator[Executor]:
    executor = make_native(program)
    yield executor
    executor.close()


def make_native(program: Program) -> Executor:
    pytest.importorskip("corral._native", reason="the native module is not built", exc_type=ImportError)
    from corral.executors.native import NativeExecutor

    num_blocks = 20 * len(program.cache.groups)
    return NativeExecutor(program, num_blocks=num_blocks, max_tokens=MAX_TOKENS, max_sequences=1, threads=2)


def divergences(result: StepResult, golden: Golden) -> Iterator[float]:
    """KL(truth || result) in nats at each position, over the truth's top 20 and all the rest as one event."""
    for i in range(len(golden.tokens) - 1):
        found = dict(zip(result.top_tokens[i].tolist(), result.top_logprobs[i].tolist(), strict=True))
        floor = min(found.values())
        truth = golden.top_logprobs[i].astype(float)
        p, q = np.exp(truth), np.array([found.get(int(token), floor) for token in golden.top_ids[i]])
        rest_p, rest_q = max(1e-9, 1 - p.sum()), max(1e-9, 1 - np.exp(q).sum())
        yield float((p * (truth - q)).sum() + rest_p * math.log(rest_p / rest_q))


def check_logprobs(executor: Executor, golden: Golden) -> None:
    result = score(executor, golden.tokens)
    np.testing.assert_allclose(result.top_logprobs, golden.top_logprobs, rtol=0, atol=1e-3)
    np.testing.assert_allclose(result.logprobs[:-1], golden.next_logprobs, rtol=0, atol=1e-3)
    for i, (found, wanted) in enumerate(zip(result.top_tokens, golden.top_ids, strict=True)):
        gap = np.diff(golden.top_logprobs[i], append=-np.inf)
        clear = -np.maximum(gap, np.append(-np.inf, gap[:-1])) > NEAR_TIE  # from both neighbours
        clear[-1] = False  # its next one is not known
        np.testing.assert_array_equal(found[clear], wanted[clear])


@pytest.mark.parametrize("passage", QUICK)
def test_reference_gives_the_true_logprobs(model: str, reference: Executor, passage: str) -> None:
    check_logprobs(reference, load_goldens(model)[passage])


@pytest.mark.slow
@pytest.mark.parametrize("passage", [name for name in PASSAGES if name not in QUICK])
def test_reference_gives_the_true_logprobs_of_every_passage(model, reference, passage: str) -> None:
    check_logprobs(reference, load_goldens(model)[passage])


def follow_greedily(executor: Executor, golden: Golden) -> tuple[list[int], list[bool]]:
    """What the executor would say after each token of the true continuation, and where that is a near tie."""
    context = len(golden.greedy_prompt)
    tokens = np.concatenate([golden.greedy_prompt, golden.greedy])[:-1]
    blocks = blocks_for(len(tokens))
    said, close = [], []
    for start, stop in [(0, context), (context, len(tokens))]:
        rows = [stop - start - 1] if start == 0 else None
        part = Part(tokens[start:stop], blocks, start, rows)
        count = 1 if rows else stop - start
        result = step(
            executor,
            make_batch([part], groups=len(executor.cache.groups), logprobs=np.full(count, 2, np.int32)),
        )
        said += result.tokens.tolist()
        close += (result.top_logprobs[:, 0] - result.top_logprobs[:, 1] <= NEAR_TIE).tolist()
    return said, close


@pytest.mark.parametrize("passage", ["english", pytest.param("json", marks=pytest.mark.slow)])
def test_reference_continues_greedily_as_the_truth(model: str, reference: Executor, passage: str) -> None:
    golden = load_goldens(model)[passage]
    said, close = follow_greedily(reference, golden)
    wrong = [
        (i, token, wanted)
        for i, (token, wanted, tie) in enumerate(zip(said, golden.greedy.tolist(), close, strict=True))
        if token != wanted and not tie
    ]
    assert wrong == []


def measure(executor: Executor, model: str) -> tuple[float, float]:
    """Mean KL and the share of positions whose likeliest token is the true one, where llama.cpp has any."""
    kl: list[float] = []
    hits: list[bool] = []
    for name, golden in load_goldens(model).items():
        result = score(executor, golden.tokens)
        counted = np.ones(len(golden.tokens) - 1, bool)
        counted[np.array(LLAMA_CPP[model]["left_out"].get(name, []), int)] = False
        kl += np.array(list(divergences(result, golden)))[counted].tolist()
        hits += (result.top_tokens[:-1, 0] == golden.top_ids[:-1, 0])[counted].tolist()
    return float(np.mean(kl)), float(np.mean(hits))


def test_native_is_as_exact_as_llama_cpp(
    model: str, native: Executor, record_property: Callable[[str, object], None]
) -> None:
    kl, top1 = measure(native, model)
    record_property("mean_kl", kl)
    record_property("top1", top1)
    assert kl <= LLAMA_CPP[model]["mean_kl"]
    assert round(top1, 3) >= round(LLAMA_CPP[model]["top1"], 3)


@pytest.mark.parametrize(("dtype", "limit"), [("BF16", 1e-4), ("F16", 1e-5), ("F32", 1e-6)])
def test_native_is_exact_over_a_folder_of_plain_floats(
    smollm2_path: Path,
    tmp_path: Path,
    dtype: str,
    limit: float,
    record_property: Callable[[str, object], None],
) -> None:
    """The truth was computed from the file's weights as float32; the folder has them in its type."""
    with open_source(export_folder(smollm2_path, tmp_path / dtype, dtype=dtype, shards=2)) as source:
        executor = make_native(build_program(source))
        kl, _ = measure(executor, "smollm2")
        executor.close()
    record_property("mean_kl", kl)
    assert kl <= limit


@pytest.mark.slow
def test_engine_over_the_reference_continues_every_passage_side_by_side(
    model: str, reference: Executor, program: Program
) -> None:
    """Chunked prefill, six sequences a step and preemption (the passages need more blocks than there are)."""
    goldens = list(load_goldens(model).values())
    engine = Engine(reference, EngineOptions(program.context_length, program.vocab_size, 64))
    for number, golden in enumerate(goldens):
        params = SamplingParams(temperature=0, max_tokens=48)
        engine.add(number, golden.greedy_prompt.tolist(), params, Scores(logprobs=2))
    said: list[list[TokenLogprob]] = [[] for _ in goldens]
    while engine.has_work:
        for output in engine.step():
            said[output.id] += output.logprobs
    assert engine.load.preemptions > 0
    for golden, entries in zip(goldens, said, strict=True):
        for entry, wanted in zip(entries, golden.greedy.tolist(), strict=True):
            if entry.top[0][1] - entry.top[1][1] <= NEAR_TIE:
                break  # from here on both ways are right
            assert entry.token == wanted
