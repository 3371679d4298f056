import numpy as np
import pytest
from fake_executor import VOCAB, FakeExecutor, next_tokens, run
from hypothesis import given, settings
from hypothesis import strategies as st

from corral.engine.engine import Engine, EngineOptions
from corral.engine.pace import LEAST_READING
from corral.errors import InvalidRequest, PromptTooLong
from corral.types import FinishReason, SamplingParams, Scores

GREEDY = SamplingParams(temperature=0, max_tokens=8)


def make(executor=None, **options):
    given = {"context_length": 512, "vocab_size": VOCAB, "batch_tokens": 64} | options
    return Engine(executor or FakeExecutor(), EngineOptions(**given))


def tokens_of(outputs):
    return [token for output in outputs for token in output.tokens]


def greedy(max_tokens, **more):
    return SamplingParams(temperature=0, max_tokens=max_tokens, **more)


def test_one_request_gives_the_models_tokens_one_output_each():
    outputs = run(make(), {1: ([1, 2, 3], GREEDY)})[1]
    assert tokens_of(outputs) == next_tokens([1, 2, 3], 8)
    assert [output.finish for output in outputs] == [None] * 7 + [FinishReason.LENGTH]
    stats = outputs[-1].stats
    assert (stats.prompt_tokens, stats.cached_tokens, stats.output_tokens) == (3, 0, 8)
    assert stats.queue_ns >= 0 and stats.prefill_ns > 0 and stats.decode_ns > 0


@pytest.mark.parametrize("batch_tokens", [1, 5, 16, 64])
@pytest.mark.parametrize("num_blocks", [9, 64])
def test_many_together_equal_each_alone_with_any_chunking_and_preemption(batch_tokens, num_blocks):
    prompts = {id: [id % 3] * (1 + 7 * id % 50) for id in range(20)}
    executor = FakeExecutor(num_blocks=num_blocks)
    engine = make(executor, batch_tokens=batch_tokens)
    outputs = run(engine, {id: (prompt, greedy(30)) for id, prompt in prompts.items()})
    for id, prompt in prompts.items():
        assert tokens_of(outputs[id]) == next_tokens(prompt, 30)
    assert engine.occupancy.preemptions > 0 or num_blocks == 64 or batch_tokens < 5
    assert engine.occupancy.blocks_used == 0


def test_second_asking_takes_the_prompt_from_the_cache_and_answers_the_same():
    engine, prompt = make(), list(range(100))
    cold = run(engine, {1: (prompt, GREEDY)})[1]
    hot = run(engine, {2: (prompt, GREEDY)})[2]
    assert tokens_of(hot) == tokens_of(cold) == next_tokens(prompt, 8)
    assert (cold[-1].stats.cached_tokens, hot[-1].stats.cached_tokens) == (0, 96)


def test_equal_prompts_with_different_salts_share_no_block():
    engine, prompt = make(), list(range(100))

    def reply(id, salt):
        engine.add(id, prompt, greedy(3), salt=salt)
        outputs = []
        while engine.has_work:
            outputs += engine.step()
        return outputs

    for id, (salt, cached) in enumerate([(b"", 0), (b"a", 0), (b"b", 0), (b"a", 96), (b"", 96)]):
        outputs = reply(id, salt)
        assert tokens_of(outputs) == next_tokens(prompt, 3)
        assert outputs[-1].stats.cached_tokens == cached
    for id, salt in enumerate([b"a", b"c", b"c"]):
        engine.add(id, prompt, greedy(20), salt=salt)
    engine.step()
    engine.check()
    running = engine.scheduler.running
    held = [set(sequence.tables[0]) for sequence in running]
    assert len(held) == 2 and not held[0] & held[1]


def test_a_conversation_continues_from_the_cached_reply():
    engine, prompt = make(), list(range(30))
    reply = tokens_of(run(engine, {1: (prompt, greedy(40))})[1])
    longer = prompt + reply + [5, 6]
    stats = run(engine, {2: (longer, GREEDY)})[2][-1].stats
    assert stats.cached_tokens == 64


def test_sampled_results_with_a_seed_do_not_depend_on_company_or_preemption():
    params = SamplingParams(temperature=1, seed=11, max_tokens=30)
    alone = tokens_of(run(make(), {1: ([4] * 20, params)})[1])
    crowd = {id: ([id] * 20, SamplingParams(max_tokens=30)) for id in range(8)}
    engine = make(FakeExecutor(num_blocks=9))
    assert tokens_of(run(engine, crowd | {99: ([4] * 20, params)})[99]) == alone
    assert engine.occupancy.preemptions


def test_requests_without_a_seed_differ_and_neighbouring_seeds_do_too():
    free = SamplingParams(temperature=1, max_tokens=12)
    outputs = run(make(), {1: ([4], free), 2: ([4], free)})
    assert tokens_of(outputs[1]) != tokens_of(outputs[2])
    seeded = [SamplingParams(temperature=1, max_tokens=12, seed=seed) for seed in (-1, 0, 1, 2**63)]
    replies = [tuple(tokens_of(run(make(), {1: ([4], params)})[1])) for params in seeded]
    assert len(set(replies)) == 4


def test_stop_token_ends_the_reply_and_is_its_last_token():
    reply = next_tokens([1, 2, 3], 8)
    outputs = run(make(), {1: ([1, 2, 3], greedy(8, stop_token_ids=(reply[3],)))})[1]
    assert tokens_of(outputs) == reply[:4]
    assert outputs[-1].finish == FinishReason.STOP


def test_stop_tokens_are_banned_until_min_tokens():
    reply = next_tokens([1, 2, 3], 2)
    params = greedy(8, min_tokens=2, stop_token_ids=(reply[1], reply[0]))
    outputs = run(make(), {1: ([1, 2, 3], params)})[1]
    tokens = tokens_of(outputs)
    assert reply[0] not in tokens[:2] and reply[1] not in tokens[:2]
    assert tokens[0] == (reply[0] + 1) % VOCAB


def test_min_tokens_mask_stop_tokens_alone_and_only_their_own_rows():
    executor = FakeExecutor()
    executor.keep = True
    stops = (31, 32, VOCAB - 1)
    run(make(executor), {1: ([1], greedy(3)), 2: ([2], greedy(3, min_tokens=2, stop_token_ids=stops))})
    for masks in (batch.sampling.masks for batch in executor.batches[:2]):
        assert masks.rows.tolist() == [-1, 0]
        allowed = masks.bits[0][:, None] >> np.arange(32, dtype=np.uint32) & 1
        assert np.flatnonzero(allowed.ravel()[:VOCAB] == 0).tolist() == [31, 32, VOCAB - 1]
    assert executor.batches[2].sampling.masks is None


def test_a_decoding_steps_arrays_lie_where_those_of_the_step_before_lay():
    engine = make()
    seen = []
    submit = engine.executor.submit
    engine.executor.submit = lambda batch: (seen.append(batch), submit(batch))
    engine.add(1, [1, 2, 3], greedy(40))
    engine.add(2, [4, 5], greedy(40))
    for _ in range(20):
        engine.step()
    for name in ("tokens", "positions", "starts", "slots", "tables", "rows"):
        assert len({getattr(batch, name).__array_interface__["data"][0] for batch in seen}) == 1, name


def test_logit_bias_and_penalties_reach_the_executor_row_by_row():
    executor = FakeExecutor()
    executor.keep = True
    prompt = [5, 5, 6, 999]
    requests = {
        1: ([1, 2], greedy(2)),
        2: (prompt, greedy(2, logit_bias={7: 1.5}, presence_penalty=0.5)),
        3: (prompt, greedy(2, repetition_penalty=1.2, penalty_window=2)),
    }
    outputs = run(make(executor), requests)
    first, second = executor.batches
    s = first.sampling
    assert s.bias.starts.tolist() == [0, 0, 1, 1]
    assert (s.bias.ids.tolist(), s.bias.values.tolist()) == ([7], [1.5])
    assert s.penalties.starts.tolist() == [0, 0, 3, 5]
    assert s.penalties.ids.tolist() == [5, 6, 999, 6, 999]
    assert s.penalties.counts.tolist() == [0, 0, 0, 1, 1]
    assert s.columns["repetition"].tolist() == pytest.approx([1, 1, 1.2])
    s = second.sampling
    new2, new3 = outputs[2][0].tokens[0], outputs[3][0].tokens[0]
    assert s.penalties.ids.tolist() == [5, 6, 999, new2, new3, 999]
    assert s.penalties.counts.tolist() == [0, 0, 0, 1, 1, 1]


def test_logprobs_come_with_each_token():
    outputs = run(make(), {1: ([1, 2], greedy(3), Scores(2)), 2: ([1, 2], greedy(3))})
    assert all(len(output.logprobs) == 1 for output in outputs[1])
    entry = outputs[1][0].logprobs[0]
    assert entry.token == outputs[1][0].tokens[0]
    assert entry.logprob < 0 and len(entry.top) == 2 and entry.top[0] == (entry.token, -1.0)
    assert all(not output.logprobs for output in outputs[2])


@pytest.mark.parametrize("batch_tokens", [3, 64])
def test_prompt_scoring_without_reply_scores_every_token_and_samples_none(batch_tokens):
    engine, prompt = make(batch_tokens=batch_tokens), list(range(40))
    run(engine, {1: (prompt, GREEDY)})  # a cached prefix must not swallow scores
    outputs = run(engine, {2: (prompt, greedy(0), Scores(prompt_logprobs=1))})[2]
    assert len(outputs) == 1 and not outputs[0].tokens
    assert outputs[0].finish == FinishReason.LENGTH
    scores = outputs[0].prompt_logprobs
    assert scores[0] is None and [score.token for score in scores[1:]] == prompt[1:]
    best = [next_tokens(prompt[:i], 1)[0] for i in range(1, 40)]
    assert [score.top[0][0] for score in scores[1:]] == best
    assert outputs[0].stats.output_tokens == 0 and outputs[0].stats.prompt_tokens == 40


def test_prompt_scores_with_a_reply_come_once_with_the_first_output_even_after_preemption():
    prompt = list(range(40))
    crowd = {id: ([id] * 30, greedy(60)) for id in range(3)}
    scored = prompt, greedy(30), Scores(0, 0)
    engine = make(FakeExecutor(num_blocks=9))
    outputs = run(engine, crowd | {9: scored})[9]
    assert engine.occupancy.preemptions
    assert [len(output.prompt_logprobs) for output in outputs] == [40] + [0] * 29
    assert tokens_of(outputs) == next_tokens(prompt, 30)


@pytest.mark.parametrize(("prompt", "scores"), [([5], [None]), ([5, 6], [])])
def test_nothing_to_compute_ends_at_once(prompt, scores):
    outputs = run(make(), {1: (prompt, greedy(0), Scores(prompt_logprobs=0 if scores else None))})[1]
    assert len(outputs) == 1 and outputs[0].finish == FinishReason.LENGTH
    assert outputs[0].prompt_logprobs == scores


def test_reply_ends_at_the_context_of_the_model_or_of_the_request():
    outputs = run(make(context_length=20), {1: ([1] * 5, SamplingParams(temperature=0))})[1]
    assert len(outputs) == 15 and outputs[-1].finish == FinishReason.LENGTH
    outputs = run(make(), {1: ([1] * 5, SamplingParams(temperature=0, context=9))})[1]
    assert len(outputs) == 4


def test_reply_ends_with_length_when_the_kv_cache_is_full_and_nobody_else_is_there():
    outputs = run(make(FakeExecutor(num_blocks=2)), {1: ([1] * 5, SamplingParams(temperature=0))})[1]
    assert len(outputs) == 32 - 5 + 1 and outputs[-1].finish == FinishReason.LENGTH


@pytest.mark.parametrize(
    ("prompt", "params", "error", "words"),
    [
        ([], GREEDY, InvalidRequest, "empty"),
        ([VOCAB], GREEDY, InvalidRequest, "1000"),
        ([-1], GREEDY, InvalidRequest, "-1"),
        ([1], greedy(1, logit_bias={VOCAB: 1}), InvalidRequest, "logit_bias"),
        ([1], greedy(1, stop_token_ids=(-1,)), InvalidRequest, "stop_token_ids"),
        ([1], greedy(1, seed=2**64), InvalidRequest, "seed"),
        ([1] * 512, GREEDY, PromptTooLong, "512"),
        ([1] * 9, greedy(1, context=9), PromptTooLong, "9"),
        ([1] * 64, GREEDY, InvalidRequest, "64 tokens, but the KV cache of this model holds 64"),
    ],
)
def test_request_that_cannot_run_is_refused_and_the_engine_goes_on(prompt, params, error, words):
    engine = make(FakeExecutor(num_blocks=4))
    with pytest.raises(error, match=words):
        engine.add(1, prompt, params)
    assert not engine.has_work
    assert tokens_of(run(engine, {1: ([1], GREEDY)})[1]) == next_tokens([1], 8)


def test_cancel_frees_the_blocks_and_gives_no_more_output():
    engine = make()
    engine.add(1, [1] * 40, GREEDY)
    engine.add(2, [2] * 40, GREEDY)
    engine.step()
    used = engine.occupancy.blocks_used
    engine.cancel(1)
    engine.cancel(1)
    engine.cancel(77)
    assert engine.occupancy.blocks_used == used // 2
    assert {output.id for output in engine.step()} == {2}
    engine.check()


def test_one_bad_row_fails_only_its_request():
    outputs = run(make(FakeExecutor(fail_token=13)), {1: ([1, 13], GREEDY), 2: ([1, 2], GREEDY)})
    assert [output.finish for output in outputs[1]] == [FinishReason.ERROR]
    assert "not a number" in outputs[1][0].error
    assert tokens_of(outputs[2]) == next_tokens([1, 2], 8)


def test_one_bad_row_while_scoring_fails_the_request_once():
    bad = [1, 13, 5], greedy(3), Scores(prompt_logprobs=0)
    outputs = run(make(FakeExecutor(fail_token=13)), {1: bad, 2: ([1, 2], GREEDY)})
    assert [output.finish for output in outputs[1]] == [FinishReason.ERROR]
    assert tokens_of(outputs[2]) == next_tokens([1, 2], 8)


@pytest.mark.parametrize("late", [False, True])
def test_value_error_in_either_half_fails_that_step_and_the_engine_goes_on(late):
    executor = FakeExecutor()
    executor.late = late
    engine = make(executor, max_sequences=2)
    executor.error = ValueError("bad shapes")
    outputs = run(engine, {1: ([1], GREEDY), 2: ([2], GREEDY), 3: ([3], GREEDY)})
    assert [outputs[id][0].finish for id in (1, 2)] == [FinishReason.ERROR] * 2
    assert "bad shapes" in outputs[1][0].error
    assert tokens_of(outputs[3]) == next_tokens([3], 8)


def test_any_other_error_of_the_executor_is_not_swallowed():
    executor = FakeExecutor()
    engine = make(executor)
    engine.add(1, [1], GREEDY)
    executor.error = RuntimeError("lost device")
    with pytest.raises(RuntimeError):
        engine.step()


def test_load_counts_tokens_in_used_blocks():
    engine = make()
    engine.add(1, list(range(40)), greedy(60))
    engine.step()
    load = engine.occupancy
    assert (load.running, load.blocks_used, load.tokens_held) == (1, 3, 40)
    engine.add(2, list(range(40)), greedy(60))
    engine.step()
    load = engine.occupancy
    assert (load.running, load.blocks_used, load.tokens_held) == (2, 4, 32 + 9 + LEAST_READING)


@pytest.mark.parametrize(
    ("kv_windows", "pools", "num_blocks"),
    [
        ((None,), (0,), 24),
        ((40, None), (0, 0), 40),
        ((17, None, 33, 1), (0, 0, 0, 0), 48),
        ((40, None), (0, 1), (24, 24)),
        ((17, None, 33, 1), (1, 0, 1, 0), (30, 30)),
        ((40, None), (0, 1), (100, 24)),
    ],
)
def test_replies_longer_than_windows_are_right_in_pools_that_are_short(kv_windows, pools, num_blocks):
    requests = {id: ([id % 3] * (20 + 37 * id), greedy(150)) for id in range(4)}
    expected = {id: next_tokens(prompt, 150) for id, (prompt, _) in requests.items()}
    engine = make(FakeExecutor(num_blocks=num_blocks, kv_windows=kv_windows, pools=pools), batch_tokens=48)
    outputs = run(engine, requests)
    assert {id: tokens_of(outputs[id]) for id in outputs} == expected
    assert engine.occupancy.preemptions > 0 and engine.occupancy.blocks_used == 0
    for cached in (False, True):
        alone = run(engine, {9: (requests[3][0] + expected[3], greedy(9))})[9]
        assert tokens_of(alone) == next_tokens(requests[3][0] + expected[3], 9)
        assert alone[-1].stats.cached_tokens == 272 or not cached


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_random_life_is_right_token_for_token(data):
    """Random arrivals, cancels and pool sizes: what is not cancelled equals what it gives alone."""
    blocks, batch, running = (data.draw(st.integers(*r)) for r in ((3, 8), (1, 40), (1, 5)))
    windows = data.draw(st.sampled_from([(None,), (None, 20), (17, 17, None), (5, None, 40, None)]))
    pools = data.draw(st.sampled_from([(0,) * len(windows), tuple(range(len(windows)))]))
    counts = [blocks * pools.count(pool) for pool in range(max(pools) + 1)]
    executor = FakeExecutor(num_blocks=counts, kv_windows=windows, pools=pools)
    engine = make(executor, batch_tokens=batch, max_sequences=running)
    longest = engine.limits.kv_tokens
    assert longest >= blocks * 16
    expected, got = {}, {}
    for id in range(data.draw(st.integers(1, 8))):
        prompt = data.draw(st.lists(st.integers(0, 1), min_size=1, max_size=longest - 1))
        reply = data.draw(st.integers(1, 20))
        scores = data.draw(st.sampled_from([None, None, 0]))
        expected[id] = next_tokens(prompt, min(reply, longest + 1 - len(prompt)))
        got[id] = []
        engine.add(id, prompt, greedy(reply), Scores(prompt_logprobs=scores))
        for _ in range(data.draw(st.integers(0, 4))):
            for output in engine.step():
                got[output.id] += output.tokens
            engine.check()
        if data.draw(st.integers(0, 5)) == 0:
            gone = data.draw(st.sampled_from(sorted(expected)))
            engine.cancel(gone)
            engine.check()
            expected[gone] = None
    while engine.has_work:
        for output in engine.step():
            got[output.id] += output.tokens
        engine.check()
    for id, tokens in expected.items():
        assert tokens is None or got[id] == tokens
    assert engine.occupancy.blocks_used == 0


def test_rows_have_their_requests_seed_and_their_tokens_index():
    executor = FakeExecutor()
    executor.keep = True
    run(make(executor), {id: ([1], SamplingParams(max_tokens=20, seed=id)) for id in range(10)})
    rows = np.concatenate([batch.sampling.columns for batch in executor.batches])
    found = sorted(zip(rows["seed"].tolist(), rows["index"].tolist(), strict=True))
    assert found == [(seed, index) for seed in range(10) for index in range(1, 21)]
