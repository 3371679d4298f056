import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corral.engine.pace import LEAST_READING, StepCost

machines = st.tuples(st.floats(1e-4, 2e-2), st.floats(2e-5, 5e-3), st.floats(1e-6, 2e-3), st.integers(0, 9))


def true_seconds(machine, tokens, rows):
    fixed, per_token, per_row, _ = machine
    return fixed + per_token * tokens + per_row * rows


def learnt(machine, noise=0.05):
    """Twelve users read 300 tokens each and decode; every twentieth step is held up, the first one too."""
    cost, chance = StepCost(), random.Random(machine[3])
    steps = [(256, 1)] * 3 + [(250 + n, 1 + n) for n in range(12)] + [(n, n) for n in (12, 8, 3, 1) * 10]
    for index, (tokens, rows) in enumerate(steps):
        seconds = true_seconds(machine, tokens, rows) * chance.uniform(1 - noise, 1 + noise)
        cost.learn(tokens, rows, seconds * (5 if index % 20 == 0 else 1))
    return cost


@settings(max_examples=100, deadline=None)
@given(machines)
def test_cost_of_a_step_is_found_through_noise_and_hold_ups(machine):
    cost = learnt(machine)
    for tokens, rows in ((1, 1), (12, 12), (256, 1), (60, 12)):
        assert cost.seconds(tokens, rows) == pytest.approx(true_seconds(machine, tokens, rows), rel=0.5)


@settings(max_examples=100, deadline=None)
@given(machines, st.integers(1, 12))
def test_one_newcomer_makes_a_step_less_than_three_times_as_long(machine, decoding):
    allowed = learnt(machine).reading(decoding, 1)
    alone = true_seconds(machine, decoding, decoding)
    if allowed > LEAST_READING:
        assert 1.3 * alone < true_seconds(machine, decoding + allowed, decoding) < 3 * alone


def test_each_newcomer_more_may_take_as_much_again():
    cost = learnt((5e-3, 1e-3, 5e-4, 0), noise=0)
    one = cost.reading(10, 1)
    assert cost.reading(10, 4) == pytest.approx(4 * one, abs=4)
    assert cost.reading(10, 1, drafts=5) < one
    assert cost.reading(10, 1, drafts=1000) == LEAST_READING


def test_nobody_decodes_nobody_is_slowed_down():
    assert StepCost().reading(0, 3) is None


def test_nothing_known_yet_allows_the_least():
    assert StepCost().reading(2, 1) == LEAST_READING


def test_a_cost_that_changes_is_followed():
    """An hour of one user, then contexts twice as long: the old costs must not have set hard."""
    cost = learnt((5e-3, 1e-3, 5e-4, 0))
    for _ in range(5000):
        cost.learn(1, 1, 6.5e-3)
    for _ in range(60):
        cost.learn(20, 20, 70e-3)
    assert cost.seconds(20, 20) == pytest.approx(70e-3, rel=0.05)
