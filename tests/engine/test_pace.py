import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corral.engine.pace import LEAST_READING, Costs, Pace
from corral.engine.scheduler import Demand

machines = st.builds(
    lambda token, *shares: Costs(shares[0] * token, token, *(share * token for share in shares[1:])),
    st.floats(1e-5, 1e-2),
    st.floats(0, 30),
    st.floats(0, 3),
    st.floats(0, 2e-3),
    st.floats(0, 2e-3),
)


def true_seconds(machine, tokens, rows, attended, fetched):
    context = machine.attend * attended + machine.read * fetched
    return machine.fixed + machine.token * tokens + machine.row * rows + context


def demand(decoding, prefilling=1, prefilled=0, context=300):
    return Demand(decoding, decoding * context, prefilling, prefilled)


def beside(machine, demand, reading):
    """Seconds of a step that decodes and reads."""
    attended, fetched = (
        demand.context + reading * demand.prefilled,
        demand.context + (reading > 0) * demand.prefilled,
    )
    return true_seconds(machine, demand.decoding + reading, demand.decoding, attended, fetched)


def learnt(machine, noise=0.05, seed=0):
    """Twelve users read 300 tokens each and decode; every twentieth step is held up, the first one too."""
    pace, chance = Pace(), random.Random(seed)
    steps = [(256, 1, 256 * 130, 260)] * 3
    steps += [(250 + n, 1 + n, (256 + 2 * n) * 150, 300 * (n + 1)) for n in range(12)]
    steps += [(n, n, n * long, n * long) for long in (100, 300, 700) for n in (12, 8, 3, 1) * 4]
    for index, step in enumerate(steps):
        seconds = true_seconds(machine, *step) * chance.uniform(1 - noise, 1 + noise)
        pace.learn(*step, seconds * (5 if index % 20 == 0 else 1))
    return pace


@settings(max_examples=100, deadline=None)
@given(machines, st.integers(0, 9))
def test_cost_of_decoding_is_found_through_noise_and_hold_ups(machine, seed):
    costs = learnt(machine, seed=seed).costs
    for decoding in (1, 3, 8, 12):
        true = beside(machine, demand(decoding), 0)
        assert costs.decoding(demand(decoding)) == pytest.approx(true, rel=0.3)


@settings(max_examples=100, deadline=None)
@given(machines, st.integers(1, 12), st.integers(0, 9))
def test_one_newcomer_makes_a_step_less_than_three_times_as_long_up_to_its_end(machine, decoding, seed):
    """Its later tokens look at ever more earlier ones; the pace follows."""
    pace, now = learnt(machine, seed=seed), demand(decoding)
    place = 0
    while place < 4000:
        now = demand(decoding, prefilled=place)
        reading = pace.reading(now)
        seconds = beside(machine, now, reading)
        if reading > LEAST_READING:
            assert seconds < 3 * beside(machine, now, 0)
        pace.learn(decoding + reading, decoding, now.context + reading * place, now.context + place, seconds)
        place += reading


def test_each_newcomer_more_may_take_as_much_again():
    pace = learnt(Costs(5e-3, 1e-3, 5e-4, 1e-8, 1e-8), noise=0)
    one = pace.reading(demand(10))
    assert one > LEAST_READING
    assert pace.reading(demand(10, prefilling=4)) == pytest.approx(4 * one, abs=4)


def test_nobody_decodes_nobody_is_slowed_down():
    assert Pace().reading(demand(0, prefilling=3)) is None


def test_nothing_known_yet_allows_the_least_and_drafts_nothing():
    assert Pace().reading(demand(2)) == LEAST_READING
    assert Pace().draft_chance(demand(1)) == 1


def test_drafts_pay_where_a_step_is_mostly_fixed_cost():
    pace = learnt(Costs(5e-3, 3e-4, 2e-4, 0.0), noise=0)
    assert pace.draft_chance(demand(1)) == pytest.approx(1.25 * 0.5 / 5.5, rel=0.05)
    assert pace.draft_chance(demand(20)) == pytest.approx(1.25 * 10 / 15, rel=0.05)
    assert learnt(Costs(1e-4, 3e-3, 2e-3, 0.0), noise=0).draft_chance(demand(12)) > 1


def test_a_draft_fetches_nothing_that_its_sequence_would_not():
    """Long contexts that take their time to come from memory make drafts pay also among many."""
    machine = Costs(2e-3, 8e-4, 3e-4, 6e-7, 6e-7)
    pace, drafted = learnt(machine, noise=0), (40, 40, 40 * 600, 20 * 600)
    step = 2e-3 + 20 * 1.1e-3 + 20 * 600 * 1.2e-6
    assert pace.draft_chance(demand(20, context=600)) < 1  # not known yet, so worth a try
    for _ in range(5):
        pace.learn(*drafted, true_seconds(machine, *drafted))
    assert pace.draft_chance(demand(20, context=600)) == pytest.approx(1.25 * 20 * 1.46e-3 / step, rel=0.05)


def test_drafts_make_a_step_at_most_twice_as_long_for_others():
    machine = Costs(2e-3, 8e-4, 3e-4, 6e-7, 6e-7)
    pace, now = learnt(machine, noise=0), demand(12, prefilling=0)
    drafts = pace.drafting(now)
    rows, context = now.decoding + drafts, now.context / now.decoding
    longer = true_seconds(machine, rows, rows, rows * context, now.context)
    assert 1.7 * beside(machine, now, 0) < longer < 2.3 * beside(machine, now, 0)
    assert pace.drafting(demand(12)) == pytest.approx(drafts / 2, abs=1)  # a prompt takes its share
    assert pace.drafting(demand(1)) is None


def test_a_cost_that_changes_is_followed():
    """Hours of one user, then a machine half as fast: the old costs must not have set hard."""
    pace = learnt(Costs(5e-3, 1e-3, 5e-4, 0.0))
    for _ in range(5000):
        pace.learn(1, 1, 300, 300, 6.5e-3)
    for _ in range(60):
        pace.learn(20, 20, 6000, 6000, 70e-3)
    assert pace.costs.decoding(demand(20)) == pytest.approx(70e-3, rel=0.1)
