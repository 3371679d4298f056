"""scripts/gate.py: its statistics, its table, and which rows it measures again."""

import json
import random
import statistics
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import gate
import gate_builds
from corral.errors import UserError
from gate_driver import Driver
from gate_figures import Row, Sample, Verdict, confidence, digits, interval, sample_of, table
from gate_gauges import GAUGES, SUBJECTS, Gauge, in_turns

ROOT = Path(__file__).parents[2]


def row_of(*ratios: float, exact: bool = False) -> Row:
    samples = tuple(Sample(2.0, 2.0 * ratio, ratio) for ratio in ratios)
    return Row("tiny", "auto", "a step", "ms", 1e3, exact, samples)


@pytest.mark.parametrize(("count", "dropped"), [(1, 0), (3, 0), (6, 0), (8, 0), (9, 1), (12, 2), (20, 5)])
def test_interval_drops_as_many_values_on_each_side_as_the_binomial_allows(count: int, dropped: int) -> None:
    values = random.Random(count).sample(range(count), count)
    assert interval(values) == (dropped, count - 1 - dropped)


@pytest.mark.parametrize("count", [6, 12, 18])
def test_interval_holds_the_median_of_skewed_noise_with_its_confidence(count: int) -> None:
    choose = random.Random(0)
    intervals = [interval([choose.lognormvariate(0, 1) for _ in range(count)]) for _ in range(4000)]
    held = statistics.mean(low <= 1 <= high for low, high in intervals)
    assert 0.95 <= confidence(count) <= held + 0.01


def test_confidence_of_few_values_is_that_of_their_range() -> None:
    assert [confidence(count) for count in (1, 2, 3, 6)] == [0, 0.5, 0.75, 0.95]


@pytest.mark.parametrize(
    ("ratios", "verdict"),
    [
        ((0.9, 1.0, 1.03), Verdict.KEPT),
        ((0.9, 1.0, 1.04), Verdict.UNSURE),
        ((1.02, 1.5, 1.5), Verdict.UNSURE),
        ((1.031, 1.04, 1.05), Verdict.LOST),
    ],
)
def test_verdict_is_lost_only_when_the_whole_interval_is_beyond(ratios, verdict) -> None:
    assert row_of(*ratios).verdict == verdict


def test_sample_compares_turn_by_turn_and_not_the_medians() -> None:
    sample = sample_of([1.0, 10.0, 5.0], [1.1, 11.0, 4.0])
    assert sample == Sample(5.0, 4.0, 1.1)


def test_turns_alternate_who_is_first_and_the_first_turn_is_left_out() -> None:
    calls = []

    def side(name: str, seconds: float):
        return lambda turn: calls.append(name + str(turn)) or (99.0 if turn == 0 else seconds)

    assert in_turns([side("a", 1.0), side("b", 2.0)], 2) == Sample(1.0, 2.0, 2.0)
    assert calls == ["a0", "b0", "b1", "a1", "a2", "b2"]


def test_table_shows_figures_in_their_unit_and_says_what_is_exact() -> None:
    lines = table([row_of(1.04, 1.05, 1.06), row_of(1.0, exact=True)], "main", "HEAD").splitlines()
    assert lines[0] == "| model | kernels | what | main | HEAD | new / old | interval |  |"
    assert lines[2] == "| tiny | auto | a step | 2000 ms | 2100 ms | 1.050 | 1.040 to 1.060 | LOST |"
    assert lines[3] == "| tiny | auto | a step | 2000 ms | 2000 ms | 1.000 | exact | kept |"


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0, "0"), (0.00077812, "0.000778"), (4.8111, "4.81"), (37.46, "37.5"), (1234.5, "1234")],
)
def test_digits_are_three_that_count(value: float, shown: str) -> None:
    assert digits(value) == shown


@pytest.fixture
def measured(monkeypatch, tmp_path):
    """Runs `main` over rows whose ratios in each round are given; the exit code, the calls, the JSON."""

    def run(ratios: dict[str, list[float]], *options: str):
        calls = []

        def measure(pair, cases, turn):
            calls.append(sorted(cases))
            return {case: Sample(1.0, ratios[case][turn], ratios[case][turn]) for case in cases}

        rows = {case: (case, "ms", 1.0) for case in ratios}
        monkeypatch.setitem(GAUGES, "speed", Gauge(rows, measure, rounds=2))
        pair = SimpleNamespace(subject=SUBJECTS["smollm2"], isa="auto")
        monkeypatch.setattr(gate, "_pairs", lambda given: [pair])
        file = tmp_path / "found.json"
        monkeypatch.setattr(sys, "argv", ["gate.py", "old", "--rows", "speed", "--json", str(file), *options])
        return gate.main(), calls, json.loads(file.read_text())

    return run


def test_a_row_that_is_unsure_is_measured_again_alone(measured) -> None:
    ratios = {"a": [1.0, 1.0], "b": [1.0, 1.1, *[1.0] * 4]}
    code, calls, found = measured(ratios)
    assert code == 0 and calls == [["a", "b"], ["a", "b"], *[["b"]] * 4]
    assert [row["verdict"] for row in found["rows"]] == ["kept", "unsure"]


def test_a_lost_row_fails_the_gate(measured) -> None:
    code, calls, found = measured({"a": [1.0, 1.0], "b": [1.2, 1.1]})
    assert code == 1 and len(calls) == 2
    assert found["rows"][1]["verdict"] == "LOST" and found["rows"][1]["samples"][0]["new"] == 1.2


def test_quick_takes_half_the_rounds_and_none_again(measured) -> None:
    code, calls, _ = measured({"a": [1.0]}, "--quick")
    assert (code, len(calls)) == (0, 1)


class CountingEngine:
    """Answers as an engine does that takes a step to read each prompt."""

    options = SimpleNamespace(vocab_size=1000)

    def __init__(self) -> None:
        self.running: list[int] = []
        self.log: list[tuple[int, ...]] = []
        self.prompts: dict[int, list[int]] = {}

    def add(self, id: int, prompt: list[int], params) -> None:
        self.prompts[id] = prompt
        self.running.append(id)

    def cancel(self, id: int) -> None:
        self.running.remove(id)

    def step(self) -> list[SimpleNamespace]:
        self.log.append(tuple(self.running))
        return [SimpleNamespace(id=id, tokens=[7]) for id in self.running]


def test_driver_times_steps_of_as_many_sequences_as_the_case_says() -> None:
    engine = CountingEngine()
    driver = Driver(engine, context=16)
    assert driver.decode(2, 0) >= 0 and driver.decode(3, 0) >= 0 and driver.decode(1, 1) >= 0
    assert engine.log == [(0, 1), (0, 1), (0, 1, 2), (0, 1, 2), (0,)]
    assert driver.prompt(8, 0) >= 0 and driver.prompt(8, 1) >= 0 and not engine.running
    assert [len(engine.prompts[id]) for id in (0, 1, 2, -1, -2)] == [16, 16, 16, 8, 8]
    assert engine.prompts[-1] != engine.prompts[-2]


@pytest.fixture
def repository(monkeypatch, tmp_path):
    """A repository with one commit whose setup makes an environment, and notes that it ran."""
    root = tmp_path / "repository"
    (root / "scripts").mkdir(parents=True)
    (root / "scripts" / "setup.py").write_text(
        "import pathlib, sys\n"
        "pathlib.Path(sys.argv[1], 'bin').mkdir(parents=True)\n"
        f"open({str(tmp_path / 'ran')!r}, 'a').write('x')\n"
    )
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b.c"]
    for words in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "first"]):
        subprocess.run([*git, *words], cwd=root, check=True)
    monkeypatch.setattr(gate_builds, "ROOT", root)
    return tmp_path


def test_a_commit_is_built_once(repository) -> None:
    first = gate_builds.build("HEAD", repository / "cache")
    again = gate_builds.build("HEAD", repository / "cache")
    assert first == again and (first.home / ".venv" / "bin").is_dir()
    assert (repository / "ran").read_text() == "x"


def test_a_build_that_broke_off_is_begun_anew(repository) -> None:
    home = gate_builds.build("HEAD", repository / "cache").home
    (home / "built").unlink()
    gate_builds.build("HEAD", repository / "cache")
    assert (repository / "ran").read_text() == "xx"


def test_an_unknown_commit_is_named(repository) -> None:
    with pytest.raises(UserError, match="nowhere"):
        gate_builds.build("nowhere", repository / "cache")


def test_a_folder_with_an_environment_is_taken_as_it_is(repository) -> None:
    home = gate_builds.build("HEAD", repository / "cache").home
    assert gate_builds.build(str(home), repository / "other").home == home


@pytest.mark.slow
@pytest.mark.model
def test_gate_of_a_tree_with_itself_finds_the_same_bits_and_loses_nothing(tmp_path) -> None:
    if not (ROOT / ".venv").is_dir():
        pytest.skip("this checkout has no environment of its own")
    file = tmp_path / "found.json"
    options = ["--quick", "--models", "smollm2", "--rows", "start,accuracy", "--json", str(file)]
    command = [sys.executable, str(ROOT / "scripts" / "gate.py"), str(ROOT), str(ROOT), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode in (0, 1), done.stderr  # a start may be unlucky
    found = json.loads(file.read_text())
    assert found["bits"]["smollm2, auto"].startswith("the same")
    assert found["rows"][-1]["what"] == "mean KL" and found["rows"][-1]["verdict"] == "kept"
