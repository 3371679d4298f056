"""Every family against transformers, from a folder and from a GGUF file, however its tokens come in.

`goldens/` has what transformers computed (scripts/family_goldens.py); `checkpoints.py` makes the weights.
"""

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import hf_folders
from batches import Part, blocks_for, make_batch, step
from corral.executors.batch import Executor, StepResult
from corral.executors.reference import ReferenceExecutor
from corral.models.program import Program
from families import checkpoints
from families.cases import CASES, Case
from families.gguf_twins import write_twin
from families.programs import open_program

CLOSE = 1e-3  # nats
DECISIVE = 0.02  # nats, on average: a change of so much is seen twenty times over
TOKENS = checkpoints.tokens()
NOISE = TOKENS[::-1]  # another sequence beside the one that is scored
COUNT = len(TOKENS)

# Steps, each as (sequence, start, stop): sequences 0 and 1 say TOKENS, sequence 2 says NOISE.
Schedule = Sequence[Sequence[tuple[int, int, int]]]
SCHEDULES: dict[str, Schedule] = {
    "prefill": [[(0, 0, COUNT)]],
    "decode": [[(0, 0, 90)], *([(0, i, i + 1)] for i in range(90, COUNT))],
    "chunks": [[(0, 0, 17)], [(0, 17, 18)], [(0, 18, 71)], [(0, 71, 135)], [(0, 135, COUNT)]],
    "batch": [
        [(2, 0, 40)],
        [(0, 0, 60), (2, 40, 41)],
        [(0, 60, 61), (1, 0, 33), (2, 41, 80)],
        [(0, 61, 62), (1, 33, 34), (2, 80, 81)],
        [(1, 34, COUNT), (0, 62, 63), (2, 81, 82)],
        [(0, 63, COUNT), (2, 82, 83)],
    ],
}


@dataclass(frozen=True)
class Golden:
    """Position i predicts token i + 1."""

    top_ids: np.ndarray  # [N, 20]
    top_logprobs: np.ndarray  # [N, 20]
    next_logprobs: np.ndarray  # [N - 1]


@functools.cache
def load_golden(name: str) -> Golden:
    with np.load(checkpoints.FOLDER / "goldens" / f"{name}.npz") as arrays:
        return Golden(**arrays)


def isas() -> list[str]:
    try:
        from corral import _native
    except ImportError:
        return []
    return list(_native.isas())


def write_folder(path: Path, name: str, change: Mapping[str, Any] | None = None, **options: Any) -> Path:
    described = checkpoints.read_case(name)
    config = {**described["published"], **(change or {})}
    return hf_folders.write_folder(path, config, checkpoints.weights(described), **options)


def write_gguf(path: Path, name: str, **options: bool) -> Path:
    described = checkpoints.read_case(name)
    architecture = next(case.architecture for case in CASES if case.name == name)
    if architecture is None:
        pytest.skip("GGUF has no words for it")
    return write_twin(path, architecture, described["published"], checkpoints.weights(described), **options)


@pytest.fixture(scope="module", params=CASES, ids=lambda case: case.name)
def case(request: pytest.FixtureRequest) -> Case:
    return request.param


@pytest.fixture(scope="module", params=[write_folder, write_gguf], ids=["folder", "gguf"])
def program(case: Case, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Program:
    return open_program(request.param(tmp_path_factory.mktemp("family") / "model", case.name))


@pytest.fixture(scope="module", params=["reference", *isas()])
def executor(program: Program, request: pytest.FixtureRequest) -> Iterator[Executor]:
    opened = open_executor(program, request.param)
    yield opened
    opened.close()


def open_executor(program: Program, name: str) -> Executor:
    num_blocks = 3 * len(blocks_for(COUNT)) * len(program.cache.groups)
    if name == "reference":
        return ReferenceExecutor(program, num_blocks=num_blocks, max_tokens=COUNT)
    from corral.executors.native import NativeExecutor

    return NativeExecutor(
        program, num_blocks=num_blocks, max_tokens=COUNT, max_sequences=3, threads=2, isa=name
    )


def follow(executor: Executor, schedule: Schedule) -> dict[tuple[int, int], tuple[StepResult, int]]:
    """Run the steps; the result, and the row in it, of every position of every sequence."""
    blocks = blocks_for(COUNT)
    found = {}
    for ranges in schedule:
        parts, targets, places = [], [], []
        for sequence, start, stop in ranges:
            text = NOISE if sequence == 2 else TOKENS
            own = [len(blocks) * sequence + block for block in blocks]
            parts.append(Part(text[start:stop], own, start))
            targets += [*text[start + 1 : stop + 1], 0][: stop - start]
            places += [(sequence, position) for position in range(start, stop)]
        batch = make_batch(
            parts,
            groups=len(executor.cache.groups),
            target=np.array(targets, np.int32),
            logprobs=np.full(len(targets), 20, np.int32),
        )
        result = step(executor, batch)
        found |= {place: (result, row) for row, place in enumerate(places)}
    return found


def worst_error(executor: Executor, golden: Golden, schedule: Schedule) -> float:
    """The largest difference to the golden's log-probs; ids must be right too, but for near ties."""
    worst = 0.0
    for (sequence, position), (result, row) in follow(executor, schedule).items():
        if sequence == 2:
            continue
        wanted = dict(
            zip(golden.top_ids[position].tolist(), golden.top_logprobs[position].tolist(), strict=True)
        )
        given = dict(zip(result.top_tokens[row].tolist(), result.top_logprobs[row].tolist(), strict=True))
        # A token in one list only is about as likely as the other's last.
        floor = min(*wanted.values(), *given.values())
        both = wanted.keys() | given.keys()
        worst = max(worst, *(abs(wanted.get(token, floor) - given.get(token, floor)) for token in both))
        if position < COUNT - 1:
            worst = max(worst, abs(float(result.logprobs[row] - golden.next_logprobs[position])))
    return worst


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_logprobs_are_those_of_transformers(case: Case, executor: Executor, schedule: Schedule) -> None:
    assert worst_error(executor, load_golden(case.name), schedule) <= CLOSE


def reference_error(path: Path, name: str) -> float:
    executor = open_executor(open_program(path), "reference")
    return worst_error(executor, load_golden(name), SCHEDULES["prefill"])


def test_a_config_saved_by_transformers_says_the_same(case: Case, tmp_path: Path) -> None:
    described = checkpoints.read_case(case.name)
    path = hf_folders.write_folder(tmp_path, described["saved"], checkpoints.weights(described))
    assert reference_error(path, case.name) <= CLOSE


@pytest.mark.parametrize("name", ["llama3", "mixtral"])
@pytest.mark.parametrize(("type_name", "shards"), [("F16", 1), ("BF16", 1), ("BF16", 3)])
def test_a_folder_may_store_halves_and_shards(name: str, type_name: str, shards: int, tmp_path: Path) -> None:
    path = write_folder(tmp_path, name, dtype=type_name, shards=shards)
    assert reference_error(path, name) <= CLOSE


def test_an_early_mixtral_file_has_a_tensor_for_each_expert(tmp_path: Path) -> None:
    assert reference_error(write_gguf(tmp_path / "m.gguf", "mixtral", stacked=False), "mixtral") <= CLOSE


def test_a_quarter_of_a_stablelm_head_rotates_where_a_folder_does_not_say(tmp_path: Path) -> None:
    path = write_folder(tmp_path, "stablelm", {"partial_rotary_factor": None})
    assert reference_error(path, "stablelm") <= CLOSE


@pytest.mark.parametrize(
    ("case", "change"),
    [pytest.param(case, change, id=case.name) for case in CASES for change in case.decisive],
)
def test_what_a_case_is_there_for_is_decisive(case: Case, change: Mapping[str, Any], tmp_path: Path) -> None:
    executor = open_executor(open_program(write_folder(tmp_path, case.name, change)), "reference")
    rows = follow(executor, SCHEDULES["prefill"]).values()
    found = np.array([result.logprobs[row] for result, row in rows])[:-1]
    assert np.abs(found - load_golden(case.name).next_logprobs).mean() > DECISIVE
