"""The native sampler against slow definitions: what each filter leaves, and the reference's choice."""

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("corral._native", reason="the native module is not built", exc_type=ImportError)

from batches import TOKEN_FIELDS, Part, blocks_for, greedy_rows, make_batch, step, with_columns
from corral.executors.batch import Bias, Masks, Penalties, SamplingRows, StepResult
from corral.executors.native import NativeExecutor
from corral.executors.reference_sampling import sample as sample_reference
from corral.models.ops import Head, Select
from op_programs import ProgramBuilder

FAILED = -1
ISAS = ("scalar", "auto")


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest) -> str:
    return request.param


def sample(
    logits: np.ndarray,
    rows: SamplingRows,
    isa: str = "auto",
    scale: np.ndarray | None = None,
    threads: int = 2,
) -> StepResult:
    """Sample these finite logits [R, V] natively; or scale [R] times one row, finite or not."""
    vocab = logits.shape[1]
    table = np.eye(len(logits)) if scale is None else scale[:, None]
    builder = ProgramBuilder(vocab)
    padded = np.zeros((vocab, table.shape[1]), np.float32)
    padded[: len(table)] = table
    x, chosen = builder.table(padded), builder.buffer(table.shape[1], selected=True)
    builder.add(Select(x, chosen))
    builder.add(Head(chosen, builder.weight(logits.T)))
    count = len(table)
    native = NativeExecutor(
        builder.build(),
        num_blocks=1 + count // 16,
        max_tokens=count,
        max_sequences=1,
        threads=threads,
        isa=isa,
    )
    result = step(native, make_batch([Part(range(count), blocks_for(count))], rows))
    native.close()
    return result


def rows_like(count: int, **fields: Any) -> SamplingRows:
    """greedy_rows with some columns changed: a number stands for a whole column."""
    return with_columns(greedy_rows(count), **fields)


def with_penalties(rows: SamplingRows, entries: list[tuple[int, int]]) -> SamplingRows:
    """The same (token, count) entries for every row."""
    count = len(rows.columns)
    ids, counts = (np.tile(column, count).astype(np.int32) for column in np.array(entries).T)
    return replace(rows, penalties=Penalties(_starts(count, len(entries)), ids, counts))


def with_bias(rows: SamplingRows, bias: dict[int, float]) -> SamplingRows:
    count = len(rows.columns)
    ids = np.tile(np.array(list(bias), np.int32), count)
    values = np.tile(np.array(list(bias.values()), np.float32), count)
    return replace(rows, bias=Bias(_starts(count, len(bias)), ids, values))


def with_masks(rows: SamplingRows, allowed: list[set[int] | None], vocab: int) -> SamplingRows:
    """A mask for each row that has a set of tokens; masks in another order than their rows."""
    masked = [row for row, tokens in enumerate(allowed) if tokens is not None][::-1]
    bits = np.zeros((len(masked), -(-vocab // 32)), np.uint32)
    which = np.full(len(allowed), -1, np.int32)
    for place, row in enumerate(masked):
        which[row] = place
        for token in allowed[row] or ():
            bits[place, token // 32] |= np.uint32(1 << token % 32)
    return replace(rows, masks=Masks(which, bits))


def _starts(rows: int, each: int) -> np.ndarray:
    return np.arange(rows + 1, dtype=np.int32) * np.int32(each)


def softmax(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(logits.astype(np.float64) - logits.max())
    return weights / weights.sum()


def expected(
    logits: np.ndarray, temperature: float, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0
) -> np.ndarray:
    """The distribution that the filters leave, by their definitions one after the other."""
    p = softmax(logits / temperature)
    p[p < min_p * p.max()] = 0
    order = np.lexsort((np.arange(len(p)), -p))
    if top_k > 0:
        p[order[top_k:]] = 0
    p /= p.sum()
    before = np.cumsum(p[order]) - p[order]
    p[order[before >= top_p]] = 0
    return p / p.sum()


def draws(logits: np.ndarray, isa: str, count: int = 6000, **fields: Any) -> np.ndarray:
    """How often each token comes over `count` rows that differ only in their seeds."""
    vocab = len(logits)
    hits = np.zeros(vocab, np.int64)
    for start in range(0, count, vocab):
        seeds = np.arange(start, min(start + vocab, count)) * 7919 + 1
        rows = rows_like(len(seeds), seed=seeds, **fields)
        result = sample(logits[None], rows, isa, np.ones(len(seeds), np.float32))
        hits += np.bincount(result.tokens, minlength=vocab)
    return hits


FILTERS = [
    {"temperature": 1.0},
    {"temperature": 0.6},
    {"temperature": 2.5},
    {"temperature": 1.0, "top_k": 5},
    {"temperature": 1.0, "top_p": 0.7},
    {"temperature": 1.0, "min_p": 0.2},
    {"temperature": 1.3, "top_k": 30, "top_p": 0.9},
    {"temperature": 0.8, "top_p": 0.95, "min_p": 0.05},
    {"temperature": 1.5, "top_k": 40, "top_p": 0.8, "min_p": 0.02},
]


@pytest.mark.parametrize("filters", FILTERS, ids=str)
def test_draws_follow_the_filtered_distribution(filters: dict[str, Any], isa: str) -> None:
    logits = np.random.default_rng(3).standard_normal(1500).astype(np.float32)
    logits[::25] += 5
    wanted = expected(logits, **filters)
    hits = draws(logits, isa, **filters)
    assert (hits[wanted == 0] == 0).all()
    # Chi-square over tokens that are expected often enough, all others taken as one.
    often = wanted * hits.sum() >= 8
    found = np.append(hits[often], hits[~often].sum())
    ideal = np.append(wanted[often], wanted[~often].sum()) * hits.sum()
    found, ideal = found[ideal > 0], ideal[ideal > 0]
    freedom = len(ideal) - 1
    statistic = ((found - ideal) ** 2 / ideal).sum()
    assert statistic < freedom + 4 * math.sqrt(2 * freedom) + 4


@pytest.mark.parametrize("spread", [0.1, 1.0, 4.0, 20.0])
@pytest.mark.parametrize("vocab", [1, 2, 60, 1023, 5000])
def test_random_rows_choose_as_the_reference_does(vocab: int, spread: float, isa: str) -> None:
    rng = np.random.default_rng(vocab)
    count = min(vocab, 48)
    logits = (rng.standard_normal((count, vocab)) * spread).astype(np.float32)
    rows = rows_like(
        count,
        temperature=rng.choice([0, 0.3, 0.9, 1.0, 1.7], count),
        top_k=rng.choice([-1, 0, 1, 3, 40, 400, 10**9], count),
        top_p=rng.choice([0, 0.1, 0.5, 0.9, 0.99, 1.0], count),
        min_p=rng.choice([0, 0, 0.05, 0.5, 1.0], count),
        repetition=rng.choice([0.8, 1.0, 1.3], count),
        presence=rng.choice([0.0, 0.7], count),
        frequency=rng.choice([0.0, -0.3, 0.5], count),
        seed=rng.integers(0, 2**63, count),
        logprobs=rng.integers(-1, 21, count),
        target=rng.choice([-1, -1, 0], count),
    )
    rows = with_bias(with_penalties(rows, [(0, 3), (vocab // 2 + 1, 0)][: min(vocab, 2)]), {vocab - 1: 1.5})
    if vocab == 2:
        rows = with_penalties(rows, [(0, 3)])
    # top_k beyond the vocabulary is no filter; the reference would still draw in another order.
    top_k = rows.columns["top_k"]
    effective = with_columns(rows, top_k=np.where(top_k < vocab, top_k, 0))
    found, wanted = sample(logits, rows, isa), sample_reference(logits, effective)
    np.testing.assert_array_equal(found.tokens, wanted.tokens)
    np.testing.assert_array_equal(found.top_tokens, wanted.top_tokens)
    np.testing.assert_allclose(found.logprobs, wanted.logprobs, rtol=1e-5, atol=2e-5)
    np.testing.assert_allclose(found.top_logprobs, wanted.top_logprobs, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("filters", [{}, *FILTERS], ids=str)
def test_threads_and_company_do_not_change_a_bit(filters: dict[str, Any], isa: str) -> None:
    logits = np.random.default_rng(5).standard_normal((70, 3001)).astype(np.float32) * 2

    def found(count: int, threads: int) -> StepResult:
        rows = rows_like(count, seed=np.arange(count), logprobs=7, repetition=1.2, presence=0.3, **filters)
        rows = with_bias(rows, {token: 3.0 for token in range(490, 530)})
        rows = with_penalties(rows, [(2999, 1), (500, 2), (3, 0)])
        return sample(logits[:count], rows, isa, threads=threads)

    wanted = found(1, 1), found(70, 1)
    for threads in (2, 4):
        together = found(70, threads)
        for name in TOKEN_FIELDS:
            np.testing.assert_array_equal(getattr(together, name), getattr(wanted[1], name))
            np.testing.assert_array_equal(getattr(together, name)[:1], getattr(wanted[0], name))


@pytest.mark.parametrize("filters", [{}, {"temperature": 1.0, "top_k": 1}, {"temperature": 1e-6, "top_k": 2}])
def test_the_lowest_of_equal_tokens_wins_across_the_vocabulary(filters: dict[str, Any], isa: str) -> None:
    logits = np.full((3, 4000), -9, np.float32)
    logits[0, [700, 1900, 3999]] = 1
    logits[1, [3998, 3999]] = 1
    logits[2, [0, 3999]] = 1
    seeds = [1, 2, 1]
    chosen = sample(logits, rows_like(3, seed=seeds, **filters), isa, threads=3).tokens
    assert chosen.tolist() == sample_reference(logits, rows_like(3, seed=seeds, **filters)).tokens.tolist()


@pytest.mark.parametrize("filters", [{}, *FILTERS], ids=str)
def test_a_long_run_of_banned_tokens_never_comes(filters: dict[str, Any], isa: str) -> None:
    logits = np.zeros((40, 2600), np.float32)
    banned = set(range(1100)) | set(range(1500, 2600))
    rows = with_bias(rows_like(40, seed=np.arange(40), **filters), dict.fromkeys(banned, -math.inf))
    tokens = sample(logits, rows, isa).tokens
    assert banned.isdisjoint(tokens.tolist())
    assert tokens.min() >= 0
    np.testing.assert_array_equal(tokens, sample_reference(logits, rows).tokens)


def test_greedy_takes_the_lowest_of_equal_tokens(isa: str) -> None:
    logits = np.zeros((3, 100), np.float32)
    logits[1, [7, 30, 99]] = 2
    logits[2, 99] = 1e-30
    assert sample(logits, rows_like(3), isa).tokens.tolist() == [0, 7, 99]


def test_top_k_of_equal_tokens_keeps_the_lowest_ids(isa: str) -> None:
    hits = draws(np.zeros(700, np.float32), isa, temperature=1.0, top_k=300)
    assert (hits[:300] > 0).all()
    assert (hits[300:] == 0).all()


def test_equal_seeds_draw_alike_whatever_the_row(isa: str) -> None:
    logits = np.tile(np.random.default_rng(0).standard_normal(512).astype(np.float32), (32, 1))
    tokens = sample(logits, rows_like(32, temperature=1.0, seed=5), isa).tokens
    assert len(set(tokens.tolist())) == 1


def test_a_row_of_nan_fails_alone(isa: str) -> None:
    logits = np.linspace(-1, 1, 64, dtype=np.float32)[None]
    for bad in (np.nan, np.inf):
        scale = np.array([1, bad, 1], np.float32)
        for fields in ({}, {"temperature": 1.0, "top_p": 0.5}, {"logprobs": 5}, {"target": 3}):
            result = sample(logits, rows_like(3, **fields), isa, scale)
            assert result.tokens[1] == FAILED
            assert result.tokens[0] == result.tokens[2] != FAILED
            assert result.top_tokens[1].tolist() == [-1] * 20


def test_one_nan_among_many_logits_is_noticed(isa: str) -> None:
    for at in (0, 5, 63, 64, 70):
        logits = np.zeros((1, 71), np.float32)
        logits[0, at] = np.nan
        assert sample(logits, rows_like(1), isa, np.ones(1, np.float32)).tokens[0] == FAILED


def test_a_row_with_every_token_banned_fails(isa: str) -> None:
    logits = np.zeros((2, 40), np.float32)
    for fields in ({}, {"temperature": 1.0}, {"temperature": 1.0, "top_k": 3, "logprobs": 2}):
        rows = with_bias(rows_like(2, **fields), dict.fromkeys(range(40), -math.inf))
        result = sample(logits, rows, isa)
        assert result.tokens.tolist() == [FAILED, FAILED]


@pytest.mark.parametrize(
    "fields",
    [{}, {"temperature": 1.0}, {"temperature": 2.0, "top_p": 0.99}, {"temperature": 1.0, "top_k": 30}],
)
def test_banned_tokens_never_come(fields: dict[str, Any], isa: str) -> None:
    logits = np.zeros((60, 60), np.float32)
    allowed = {3, 40, 59}
    bias = {token: -math.inf for token in range(60) if token not in allowed}
    rows = with_bias(rows_like(60, seed=np.arange(60), **fields), bias)
    assert set(sample(logits, rows, isa).tokens.tolist()) <= allowed


@pytest.mark.parametrize("vocab", [31, 32, 500, 1037])
@pytest.mark.parametrize("filters", [{}, *FILTERS], ids=str)
def test_masked_rows_choose_among_their_own_tokens_and_others_among_all(
    filters: dict[str, Any], vocab: int, isa: str
) -> None:
    random = np.random.default_rng(7)
    logits = random.standard_normal((20, vocab)).astype(np.float32)
    allowed: list[set[int] | None] = [None, {vocab - 1}, set(range(0, vocab, 2)), {0, vocab // 2}] * 5
    rows = rows_like(20, seed=np.arange(20), presence=0.5, **filters)
    rows = with_bias(with_penalties(rows, [(vocab - 1, 1)]), {0: 2.0})
    masked = with_masks(rows, allowed, vocab)
    tokens = sample(logits, masked, isa).tokens
    assert all(own is None or token in own for token, own in zip(tokens.tolist(), allowed, strict=True))
    np.testing.assert_array_equal(tokens, sample_reference(logits, masked).tokens)
    np.testing.assert_array_equal(tokens[::4], sample(logits, rows, isa).tokens[::4])


@pytest.mark.parametrize(
    "fields", [{}, {"temperature": 1.0}, {"temperature": 1.0, "top_k": 3, "logprobs": 2}]
)
def test_a_row_whose_mask_allows_nothing_fails_alone(fields: dict[str, Any], isa: str) -> None:
    logits = np.zeros((3, 700), np.float32)
    rows = with_masks(rows_like(3, **fields), [None, set(), {699}], 700)
    for result in (sample(logits, rows, isa), sample_reference(logits, rows)):
        assert result.tokens[1] == FAILED
        assert result.tokens[0] >= 0 and result.tokens[2] == 699


def test_a_mask_hides_neither_nan_nor_infinity(isa: str) -> None:
    for bad in (np.nan, np.inf):
        logits = np.zeros((1, 71), np.float32)
        logits[0, 40] = bad
        rows = with_masks(rows_like(1), [{1, 2}], 71)
        assert sample(logits, rows, isa, np.ones(1, np.float32)).tokens[0] == FAILED
        assert sample_reference(logits, rows).tokens[0] == FAILED


def test_logprobs_are_those_before_the_mask(isa: str) -> None:
    logits = np.random.default_rng(9).standard_normal((1, 300)).astype(np.float32)
    rows = rows_like(1, logprobs=3)
    free, masked = sample(logits, rows, isa), sample(logits, with_masks(rows, [{123}], 300), isa)
    assert masked.tokens.tolist() == [123]
    assert masked.logprobs[0] == pytest.approx(np.log(softmax(logits[0])[123]), abs=2e-6)
    np.testing.assert_array_equal(masked.top_tokens, free.top_tokens)


def test_penalties_divide_positive_and_multiply_negative_logits(isa: str) -> None:
    # Each row has one rival whose logit lies just below, then just above, where the penalty takes token 0.
    cases = [
        ({"repetition": 2.0}, [(0, 0)], 3.0, 1.5),
        ({"repetition": 2.0}, [(0, 5)], -1.0, -2.0),
        ({"repetition": 2.0}, [(5, 5)], 3.0, 3.0),
        ({"presence": 0.5}, [(0, 4)], 3.0, 2.5),
        ({"presence": 0.5}, [(0, 0)], 3.0, 3.0),
        ({"frequency": 0.5}, [(0, 4)], 3.0, 1.0),
        ({"frequency": -1.0, "presence": 0.25, "repetition": 1.5}, [(0, 2)], 3.0, 3.75),
    ]
    for fields, entries, before, after in cases:
        logits = np.full((2, 20), -50, np.float32)
        logits[:, 0] = before
        logits[:, 1] = after - 0.01, after + 0.01
        result = sample(logits, with_penalties(rows_like(2, **fields), entries), isa)
        assert result.tokens.tolist() == [0, 1], fields


def test_bias_comes_before_penalties_and_logprobs_before_both(isa: str) -> None:
    logits = np.zeros((1, 8), np.float32)
    rows = with_bias(rows_like(1, repetition=4.0, logprobs=3), {2: 1.0, 5: 2.0})
    result = sample(logits, with_penalties(rows, [(5, 1)]), isa)  # 5: 2 / 4, 2: 1
    assert result.tokens.tolist() == [2]
    assert result.logprobs[0] == pytest.approx(-math.log(8), abs=1e-6)
    assert result.top_tokens[0, :4].tolist() == [0, 1, 2, -1]


def test_targets_are_scored_and_not_sampled(isa: str) -> None:
    logits = np.random.default_rng(2).standard_normal((4, 300)).astype(np.float32)
    targets = np.array([0, 299, 17, 150], np.int32)
    rows = rows_like(4, target=targets, temperature=1.0, logprobs=[-1, 0, 1, 20])
    result = sample(logits, rows, isa)
    assert result.tokens.tolist() == targets.tolist()
    wanted = [np.log(softmax(row))[target] for row, target in zip(logits, targets, strict=True)]
    np.testing.assert_allclose(result.logprobs, wanted, atol=2e-6)
    assert (result.top_tokens >= 0).sum(axis=1).tolist() == [0, 0, 1, 20]


def test_no_logprobs_are_given_where_none_are_wanted(isa: str) -> None:
    result = sample(np.eye(4, 50, dtype=np.float32), rows_like(4), isa)
    assert not result.logprobs.any()
    assert (result.top_tokens == -1).all()


def sweep(vocab: int) -> Iterator[np.ndarray]:
    yield np.arange(vocab, dtype=np.float32) / vocab
    yield np.arange(vocab, dtype=np.float32)[::-1] / vocab
    yield np.zeros(vocab, np.float32)


@pytest.mark.parametrize("vocab", [300, 513])
def test_alternatives_are_sorted_and_ties_go_by_id(vocab: int, isa: str) -> None:
    logits = np.stack(list(sweep(vocab)))
    result = sample(logits, rows_like(3, logprobs=20), isa)
    assert result.top_tokens[0].tolist() == list(range(vocab - 1, vocab - 21, -1))
    assert result.top_tokens[1].tolist() == list(range(20))
    assert result.top_tokens[2].tolist() == list(range(20))
