"""Drafts change how fast a reply comes and nothing else."""

import dataclasses

import pytest
from fake_executor import VOCAB, FakeExecutor, run
from hypothesis import given, settings
from hypothesis import strategies as st
from test_invariance import EXECUTORS, FAMILIES

from corral.engine.engine import Engine, EngineOptions
from corral.engine.pace import Pace
from corral.models.table import build_program
from corral.types import FinishReason, SamplingParams, Scores
from corral.weights.gguf_source import GGUFSource

GREEDY = SamplingParams(temperature=0, max_tokens=60)


@pytest.fixture(autouse=True)
def always(monkeypatch):
    """Every guess is verified, whatever it costs."""
    monkeypatch.setattr(Pace, "draft_chance", lambda self, crowd: 0.0)


def make(drafts=True, num_blocks=64, batch_tokens=64, **more):
    executor = FakeExecutor(num_blocks=num_blocks, **({"memory": 2} | more))
    options = EngineOptions(context_length=512, vocab_size=VOCAB, batch_tokens=batch_tokens, drafts=drafts)
    return Engine(executor, options)


def told(outputs):
    """All that a client sees of a reply but its pace."""
    last = outputs[-1]
    return (
        [token for output in outputs for token in output.tokens],
        [score for output in outputs for score in output.logprobs],
        [score for output in outputs for score in output.prompt_logprobs],
        last.finish,
        last.stats and (last.stats.prompt_tokens, last.stats.output_tokens),
    )


def assert_same(requests, **options):
    """The same with drafts as without; gives the engine that drafted."""
    plain = run(make(drafts=False, **options), requests)
    engine = make(**options)
    drafted = run(engine, requests)
    for id in requests:
        assert told(drafted[id]) == told(plain[id])
    assert engine.occupancy.blocks_used == 0
    return engine


def test_right_drafts_save_steps_and_are_counted():
    engine = assert_same({1: ([1, 2, 3], GREEDY)})
    load = engine.occupancy
    assert load.steps + load.accepted == 60
    assert 0 < load.accepted <= load.drafted and load.steps < 30


def test_no_drafts_where_they_are_switched_off():
    engine = make(drafts=False)
    assert all(len(output.tokens) == 1 for output in run(engine, {1: ([1, 2, 3], GREEDY)})[1])
    assert engine.occupancy.drafted == 0


def test_no_drafts_where_they_do_not_pay(monkeypatch):
    monkeypatch.setattr(Pace, "draft_chance", lambda self, crowd: 1.0)
    engine = make()
    run(engine, {1: ([1, 2, 3], GREEDY)})
    assert engine.occupancy.drafted == 0


def test_guesses_are_judged_also_while_none_is_verified(monkeypatch):
    """Once a draft pays, those who repeat themselves are known."""
    monkeypatch.setattr(Pace, "draft_chance", lambda self, crowd: 1.0)
    engine = make()
    engine.add(1, [1, 2, 3], GREEDY)
    for _ in range(45):
        assert all(len(output.tokens) == 1 for output in engine.step())
    monkeypatch.setattr(Pace, "draft_chance", lambda self, crowd: 0.9)
    assert sum(len(output.tokens) for output in engine.step()) > 1


@pytest.mark.parametrize("length", range(1, 40, 3))
def test_a_reply_has_no_token_more_than_was_asked_for(length):
    assert_same({1: ([1, 2, 3], SamplingParams(temperature=0, max_tokens=length))})
    assert_same({1: ([1] * 3, SamplingParams(temperature=0, context=3 + length))})


def test_a_stop_token_among_right_drafts_ends_the_reply_there():
    reply = told(run(make(), {1: ([1, 2, 3], GREEDY)})[1])[0]
    for token in set(reply):
        params = SamplingParams(temperature=0, max_tokens=60, min_tokens=20, stop_token_ids=(token,))
        assert_same({1: ([1, 2, 3], params)})
        outputs = run(make(), {1: ([1, 2, 3, *reply[:30]], GREEDY)})[1]
        assert outputs[-1].finish == FinishReason.LENGTH
        assert_same({1: ([1, 2, 3, *reply[:30]], dataclasses.replace(params, min_tokens=5))})


def test_drafts_stay_within_a_full_cache():
    engine = assert_same({1: ([1] * 5, SamplingParams(temperature=0))}, num_blocks=2)
    assert engine.occupancy.accepted > 0


def test_drafts_never_preempt_and_survive_preemption():
    requests = {id: ([id] * 20, SamplingParams(temperature=0, max_tokens=60)) for id in range(8)}
    engine = assert_same(requests, num_blocks=12)
    assert engine.occupancy.preemptions and engine.occupancy.accepted


def test_drafts_and_sliding_windows_that_drop_blocks_agree():
    requests = {id: ([id, 5] * 20, SamplingParams(temperature=0, max_tokens=90)) for id in range(4)}
    assert assert_same(requests, num_blocks=90, kv_windows=(None, 20)).occupancy.accepted


def test_only_what_was_said_is_found_in_the_prefix_cache():
    """A continued conversation after wrong drafts: their keys and values must not be taken for its own."""
    engine, prompt = make(), [1, 2, 3]
    reply = told(run(engine, {1: (prompt, GREEDY)})[1])[0]
    for cut in range(10, 60, 7):
        for other in range(3):
            longer = prompt + reply[:cut] + [other] * 9
            assert (
                told(run(engine, {2: (longer, GREEDY)})[2])[0]
                == told(run(make(drafts=False), {2: (longer, GREEDY)})[2])[0]
            )


def test_a_row_that_fails_after_right_drafts_fails_after_their_tokens():
    reply = told(run(make(), {1: ([1, 2, 3], GREEDY)})[1])[0]
    assert_same({1: ([1, 2, 3], GREEDY), 2: ([3, 4], GREEDY)}, fail_token=reply[-1])


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_random_life_is_the_same_with_drafts(data):
    options = {"num_blocks": data.draw(st.integers(3, 10)), "batch_tokens": data.draw(st.integers(1, 40))}
    requests = {}
    for id in range(data.draw(st.integers(1, 6))):
        prompt = data.draw(st.lists(st.integers(0, 6), min_size=1, max_size=47))
        params = SamplingParams(
            temperature=data.draw(st.sampled_from([0, 0, 1])),
            seed=id,
            max_tokens=data.draw(st.integers(1, 50)),
            min_tokens=data.draw(st.integers(0, 9)),
            stop_token_ids=data.draw(st.sampled_from([(), (), (3,)])),
        )
        scores = Scores(data.draw(st.sampled_from([None, 2])), data.draw(st.sampled_from([None, None, 0])))
        requests[id] = (prompt, params, scores)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Pace, "draft_chance", lambda self, crowd: 0.0)
        assert_same(requests, **options)


@pytest.fixture(scope="module", params=FAMILIES)
def program(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "tiny.gguf"
    return build_program(GGUFSource.open(FAMILIES[request.param](path)))


def requests_of_all_kinds(vocab_size):
    """Prompts that repeat themselves, drawn and penalised in every way that looks at earlier tokens."""
    ways = (
        {"temperature": 0},
        {"temperature": 0, "repetition_penalty": 1.1, "penalty_window": 16},
        {"temperature": 0.3, "top_k": 5, "frequency_penalty": 0.2, "presence_penalty": 0.1},
        {"temperature": 0.2, "repetition_penalty": 1.05, "penalty_window": -1},
        {"temperature": 0, "logit_bias": {3: 2.0}, "min_tokens": 12, "stop_token_ids": (3, 5)},
        {"temperature": 0.1, "top_p": 0.8, "min_p": 0.02, "repetition_penalty": 0.9},
    )
    for id, way in enumerate(ways * 2):
        period = 5 + id
        prompt = [(11 * (i % period) + id) % vocab_size for i in range(20 + 3 * id)]
        scores = Scores(2, 0 if way.get("penalty_window") == -1 else None)
        yield id, (prompt, SamplingParams(seed=id, max_tokens=40, **way), scores)


@pytest.mark.parametrize("name", EXECUTORS)
def test_real_executors_say_the_same_bits_with_drafts(name, program):
    wanted = dict(requests_of_all_kinds(program.vocab_size))
    executor = EXECUTORS[name](program, num_blocks=200 * len(program.cache.groups), max_tokens=64)
    options = EngineOptions(
        context_length=program.context_length,
        vocab_size=program.vocab_size,
        batch_tokens=64,
        max_sequences=20,
    )
    plain = run(Engine(executor, dataclasses.replace(options, drafts=False)), wanted)
    engine = Engine(executor, options)
    hot = [run(engine, wanted) for _ in range(2)]
    for drafted in hot:
        for id in wanted:
            one, other = told(plain[id]), told(drafted[id])
            if name == "native":
                assert one == other, id
            else:  # numpy's sums differ with the number of rows
                assert one[0] == other[0] and one[3:] == other[3:], id
    assert engine.occupancy.accepted > 100 and engine.occupancy.accepted < engine.occupancy.drafted
