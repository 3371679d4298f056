import pytest

from corral.bench import step
from corral.bench.step import MEASURED, StepCosts, engine_costs, engine_table, step_costs, step_table
from corral.config import Settings
from corral.engine.engine import Engine
from corral.engine.protocol import Step
from gguf_files import tiny_llama


def test_the_parts_of_a_step_lie_within_it(tmp_path) -> None:
    path = tiny_llama(tmp_path / "tiny.gguf")
    for cost, users in zip(step_costs(path, Settings(threads=1), (1, 3), 16), (1, 3), strict=True):
        assert cost.users == users
        assert set(cost.parts) == {"schedule", "pack", "finish", "send", "binding"}
        assert all(spent >= 0 for spent in cost.native.values()) and "attention" in cost.native
        told = sum(cost.native.values()) + sum(cost.parts.values())
        assert 0 < told <= cost.total * 1.001  # the rest is the loop between the parts


def test_a_step_decodes_one_token_a_sequence(tmp_path, monkeypatch) -> None:
    steps: list[Step] = []

    class Counting(Engine):
        def step(self) -> Step:
            steps.append(super().step())
            return steps[-1]

    monkeypatch.setattr("corral.engine.load.Engine", Counting)
    path = tiny_llama(tmp_path / "tiny.gguf")  # random weights repeat themselves: guesses would come true
    step_costs(path, Settings(threads=1), (6,), 200)
    assert len(steps) > MEASURED
    assert all([len(output.tokens) for output in step] == [1] * 6 for step in steps[-MEASURED:])


def test_the_table_has_parts_as_rows() -> None:
    cost = StepCosts(20, 10.0, {"pack": 0.5, "binding": 0.1}, {"attention": 4.0, "head": 5.0})
    table = step_table("tiny", [cost])
    rows = dict(table.rows)
    assert rows["a step"] == "10" and rows["native: head"] == "5" and rows["pack"] == "0.500"
    assert rows["outside the native core"] == "1" and rows["share outside"] == "10.0 %"
    assert cost.outside == pytest.approx(1.0)


def test_the_engine_alone_decodes_one_token_a_sequence_in_every_round(monkeypatch) -> None:
    steps: list[Step] = []

    class Counting(Engine):
        def step(self) -> Step:
            steps.append(super().step())
            return steps[-1]

    monkeypatch.setattr(step, "Engine", Counting)
    monkeypatch.setattr(step, "ROUNDS", 3)
    (cost,) = engine_costs((5,), 40)
    assert set(cost.parts) == {"schedule", "pack", "executor", "finish", "send", "receive"}
    assert 0 < sum(cost.parts.values()) - cost.parts["receive"] <= cost.total * 1.001
    assert len(steps) > 3 * step.ROUND
    assert all([len(output.tokens) for output in given] == [1] * 5 for given in steps)


def test_the_engines_table_is_in_microseconds_a_sequence() -> None:
    table = engine_table([StepCosts(64, 0.32, {"pack": 0.064, "receive": 0.0064}, {})])
    assert table.rows == (("a step", "5.00"), ("pack", "1.00"), ("receive", "0.10"))
