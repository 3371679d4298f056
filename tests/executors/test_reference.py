from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from batches import Part, blocks_for, greedy_rows, make_batch, step, with_columns
from corral.executors.batch import Bias, Executor, Penalties, StepResult
from corral.executors.reference import ReferenceExecutor
from corral.models.cache import KVLayer
from corral.models.ops import Attention, Embed, Head, KVWrite, LayerNorm, Linear, RmsNorm
from corral.models.program import Buffer, Program
from corral.models.table import build_program
from corral.types import BLOCK_SIZE
from corral.weights.gguf import open_gguf
from corral.weights.gguf_source import GGUFSource
from corral.weights.qtensor import QTensor
from gguf_files import tiny_gemma3, tiny_llama
from op_programs import ProgramBuilder

TOKENS = np.random.default_rng(0).integers(0, 300, 90).tolist()
CLOSE = {"rtol": 0, "atol": 1e-4}


@pytest.fixture(params=[tiny_llama, tiny_gemma3], ids=["llama", "gemma3"])
def program(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Program]:
    with open_gguf(request.param(tmp_path / "m.gguf")) as file:
        yield build_program(GGUFSource(file))


@pytest.fixture
def executor(program: Program) -> Executor:
    return ReferenceExecutor(program, num_blocks=32 * len(program.cache.groups), max_tokens=128)


def run(executor: Executor, parts: list[Part]) -> StepResult:
    rows = sum(len(part.tokens) for part in parts)
    groups = len(executor.cache.groups)
    return step(executor, make_batch(parts, groups=groups, logprobs=np.full(rows, 20, np.int32)))


@pytest.mark.parametrize("chunk", [1, 7, 16, 50])
def test_a_prompt_in_chunks_gives_what_it_gives_whole(executor: Executor, chunk: int) -> None:
    blocks = blocks_for(len(TOKENS))
    whole = run(executor, [Part(TOKENS, blocks)])
    parts = [Part(TOKENS[start : start + chunk], blocks, start) for start in range(0, len(TOKENS), chunk)]
    chunks = [run(executor, [part]) for part in parts]
    np.testing.assert_allclose(np.concatenate([c.top_logprobs for c in chunks]), whole.top_logprobs, **CLOSE)
    np.testing.assert_array_equal(np.concatenate([c.tokens for c in chunks]), whole.tokens)


def test_sequences_in_one_step_do_not_see_each_other(executor: Executor) -> None:
    first, second = TOKENS[:40], TOKENS[50:85]
    alone = [run(executor, [Part(tokens, blocks_for(len(tokens)))]) for tokens in (first, second)]
    together = run(executor, [Part(first, [9, 2, 30]), Part(second, [0, 17, 5, 31])])
    wanted = np.concatenate([result.top_logprobs for result in alone])
    np.testing.assert_allclose(together.top_logprobs, wanted, **CLOSE)


def test_prefill_and_decode_mix_in_one_step(executor: Executor) -> None:
    whole = run(executor, [Part(TOKENS, blocks_for(len(TOKENS)))])
    run(executor, [Part(TOKENS[:-1], blocks_for(len(TOKENS), first=10))])
    mixed = run(
        executor,
        [
            Part(TOKENS[:20], blocks_for(20)),
            Part(TOKENS[-1:], blocks_for(len(TOKENS), first=10), start=len(TOKENS) - 1),
        ],
    )
    np.testing.assert_allclose(mixed.top_logprobs[:20], whole.top_logprobs[:20], **CLOSE)
    np.testing.assert_allclose(mixed.top_logprobs[-1], whole.top_logprobs[-1], **CLOSE)


def test_only_wanted_rows_come_back_in_their_order(executor: Executor) -> None:
    blocks = blocks_for(len(TOKENS))
    whole = run(executor, [Part(TOKENS, blocks)])
    groups, part = len(executor.cache.groups), Part(TOKENS, blocks, rows=[3, 89])
    some = step(executor, make_batch([part], groups=groups, logprobs=np.full(2, 20, np.int32)))
    np.testing.assert_allclose(some.top_logprobs, whole.top_logprobs[[3, 89]], **CLOSE)


def test_a_step_that_wants_no_logits_still_fills_the_cache(executor: Executor) -> None:
    blocks = blocks_for(len(TOKENS))
    whole = run(executor, [Part(TOKENS, blocks)])
    part = Part(TOKENS[:-1], blocks_for(len(TOKENS), first=8), rows=[])
    step(executor, make_batch([part], groups=len(executor.cache.groups)))
    last = run(executor, [Part(TOKENS[-1:], blocks_for(len(TOKENS), first=8), start=len(TOKENS) - 1)])
    np.testing.assert_allclose(last.top_logprobs[0], whole.top_logprobs[-1], **CLOSE)


def test_too_many_tokens_are_refused(program: Program) -> None:
    executor = ReferenceExecutor(program, num_blocks=8, max_tokens=4)
    with pytest.raises(ValueError, match="5 tokens"):
        run(executor, [Part(TOKENS[:5], [0])])


def float_tensor(values: np.ndarray) -> QTensor:
    rows = np.ascontiguousarray(np.atleast_2d(values), np.float32)
    return QTensor("t", rows.shape, "F32", (rows.view(np.uint8),))


def attention_program(layer: KVLayer, heads: int, rng: np.random.Generator) -> Program:
    """q, k and v are tables by token; logits are one head's output."""
    width = heads * layer.value_size
    widths = [heads * layer.key_size, layer.kv_heads * layer.key_size, layer.kv_heads * layer.value_size]
    tables = [rng.normal(0, 1, (64, columns)) for columns in widths]
    return Program(
        buffers=tuple(map(Buffer, "qkvo", [*widths, width])),
        weights=tuple(float_tensor(table) for table in [*tables, np.eye(width)]),
        kv_layers=(layer,),
        ops=(
            Embed(0, 0),
            Embed(1, 1),
            Embed(2, 2),
            KVWrite(1, 2, 0),
            Attention(0, 3, 0, heads, 0.3),
            Head(3, 3),
        ),
        vocab_size=width,
        context_length=256,
    )


def dense_attention(program: Program, tokens: list[int], heads: int) -> np.ndarray:
    """Position by position over the plain list of what each one may see."""
    layer = program.kv_layers[0]
    q, k, v = (program.weights[i].dequantize()[tokens].astype(float) for i in range(3))
    out = np.zeros((len(q), heads * layer.value_size))
    for n in range(len(tokens)):
        first = 0 if layer.window is None else max(0, n + 1 - layer.window)
        for head in range(heads):
            kv_head = head // (heads // layer.kv_heads)
            keys, values = (x.reshape(len(x), layer.kv_heads, -1)[first : n + 1, kv_head] for x in (k, v))
            scores = np.exp(0.3 * keys @ q[n].reshape(heads, -1)[head])
            out[n].reshape(heads, -1)[head] = scores @ values / scores.sum()
    return out


@pytest.mark.parametrize("window", [None, 1, 5, BLOCK_SIZE, 40, 1000])
@pytest.mark.parametrize(("heads", "kv_heads", "value_size"), [(4, 4, 8), (6, 2, 8), (4, 1, 6), (4, 2, 12)])
def test_attention_sees_what_a_dense_mask_shows(
    window: int | None, heads: int, kv_heads: int, value_size: int
) -> None:
    program = attention_program(KVLayer(kv_heads, 8, value_size, window), heads, np.random.default_rng(3))
    executor = ReferenceExecutor(program, num_blocks=8, max_tokens=64)
    tokens = np.random.default_rng(4).integers(0, 64, 50).tolist()
    blocks = [5, 1, 7, 2]
    outputs = []
    for start, stop in [(0, 17), (17, 18), (18, 50)]:
        step(executor, make_batch([Part(tokens[start:stop], blocks, start)]))
        outputs.append(executor.buffer(3))
    wanted = dense_attention(program, tokens, heads)
    np.testing.assert_allclose(np.concatenate(outputs), wanted, rtol=0, atol=1e-5)


def test_linear_adds_its_bias_and_norm_works_part_by_part() -> None:
    rng = np.random.default_rng(5)
    table, matrix, bias, norm = (
        rng.normal(size=(8, 6)),
        rng.normal(size=(4, 6)),
        rng.normal(size=4),
        rng.normal(size=2),
    )
    program = Program(
        buffers=(Buffer("x", 6), Buffer("y", 4), Buffer("z", 4)),
        weights=tuple(float_tensor(a) for a in (table, matrix, bias, norm, np.eye(4))),
        kv_layers=(),
        ops=(
            Embed(0, 0, scale=3.0),
            Linear(0, (1,), (1,), (2,)),
            RmsNorm(1, 3, 2, 1e-6, heads=2),
            Head(2, 4),
        ),
        vocab_size=4,
        context_length=16,
    )
    executor = ReferenceExecutor(program, num_blocks=1, max_tokens=8)
    step(executor, make_batch([Part([1, 5, 7], [0])]))
    y = 3 * table[[1, 5, 7]] @ matrix.T + bias
    np.testing.assert_allclose(executor.buffer(1), y, rtol=1e-5)
    pairs = y.reshape(3, 2, 2)
    z = pairs / np.sqrt((pairs**2).mean(-1, keepdims=True) + 1e-6) * norm
    np.testing.assert_allclose(executor.buffer(2), z.reshape(3, 4), rtol=1e-5)


def test_layer_norm_moves_and_scales_rows_by_their_own_mean_and_variance() -> None:
    rng = np.random.default_rng(6)
    table, weight, bias = rng.normal(3, 2, size=(8, 40)), rng.normal(size=40), rng.normal(size=40)
    builder = ProgramBuilder(8)
    x, out = builder.table(table), builder.buffer(40)
    builder.add(LayerNorm(x, builder.weight(weight), builder.weight(bias), out, 0.5))
    executor = ReferenceExecutor(builder.build(), num_blocks=1, max_tokens=8)
    step(executor, make_batch([Part([1, 5, 7], [0], rows=[])]))
    rows = table[[1, 5, 7]]
    mean, variance = rows.mean(axis=1, keepdims=True), rows.var(axis=1, keepdims=True)
    wanted = (rows - mean) / np.sqrt(variance + 0.5) * weight + bias
    np.testing.assert_allclose(executor.buffer(out), wanted, rtol=1e-5, atol=1e-5)


# Sampling: a program whose logits are the rows of a table, so that each test can write its logits down.

Sampled = Callable[..., StepResult]


@pytest.fixture
def sampled() -> Sampled:
    def run(*logits: list[float], **fields: object) -> StepResult:
        table = np.array(logits, np.float32)
        width = table.shape[1]
        program = Program(
            buffers=(Buffer("x", width),),
            weights=(float_tensor(table), float_tensor(np.eye(width))),
            kv_layers=(),
            ops=(Embed(0, 0), Head(0, 1)),
            vocab_size=width,
            context_length=16,
        )
        executor = ReferenceExecutor(program, num_blocks=1, max_tokens=len(logits))
        lists = {name: fields.pop(name) for name in ("masks", "penalties", "bias") if name in fields}
        rows = replace(with_columns(greedy_rows(len(logits)), **fields), **lists)
        return step(executor, make_batch([Part(range(len(logits)), [0])], rows))

    return run


def bias_of_one_row(bias: dict[int, float]) -> Bias:
    ids, values = np.array(list(bias), np.int32), np.array(list(bias.values()), np.float32)
    return Bias(np.array([0, len(bias)], np.int32), ids, values)


def token_seen(count: int) -> Penalties:
    """Token 0 in the only row."""
    return Penalties(np.array([0, 1], np.int32), np.zeros(1, np.int32), np.array([count], np.int32))


def test_greedy_takes_the_largest_and_the_lower_id_of_equals(sampled: Sampled) -> None:
    assert sampled([0, 2, 2, 1], [5, 1, 1, 1]).tokens.tolist() == [1, 0]


def test_logprobs_are_of_the_raw_distribution(sampled: Sampled) -> None:
    result = sampled([1, 3, 2], logprobs=[2], bias=bias_of_one_row({0: 10}), temperature=[0])
    wanted = np.array([1, 3, 2]) - np.log(np.exp([1, 3, 2]).sum())
    assert result.tokens[0] == 0
    assert result.logprobs[0] == pytest.approx(wanted[0], abs=1e-6)
    assert result.top_tokens[0, :3].tolist() == [1, 2, -1]
    assert result.top_logprobs[0, :2] == pytest.approx(wanted[[1, 2]], abs=1e-6)


def test_no_logprobs_are_reported_unless_wanted(sampled: Sampled) -> None:
    result = sampled([1, 3, 2])
    assert result.logprobs[0] == 0
    assert (result.top_tokens == -1).all()


def test_a_target_is_scored_and_not_sampled(sampled: Sampled) -> None:
    result = sampled([1, 3, 2], target=[2], temperature=[1])
    assert result.tokens[0] == 2
    assert result.logprobs[0] == pytest.approx(2 - np.log(np.exp([1, 3, 2]).sum()), abs=1e-6)


def test_a_minus_infinite_bias_bans_a_token(sampled: Sampled) -> None:
    bias = bias_of_one_row({1: -np.inf})
    assert sampled([0, 9, 1], bias=bias).tokens[0] == 2
    drawn = {sampled([0, 9, 1], bias=bias, temperature=[5], seed=[seed]).tokens[0] for seed in range(50)}
    assert drawn == {0, 2}


@pytest.mark.parametrize(
    ("penalty", "wanted"),
    [
        ({"repetition": [2.0]}, 1),  # 3 / 2 < 2.4
        ({"repetition": [1.2]}, 0),  # 3 / 1.2 > 2.4
        ({"presence": [0.7]}, 1),
        ({"presence": [0.5]}, 0),
        ({"frequency": [0.25]}, 1),  # three times
        ({"frequency": [0.15]}, 0),
    ],
)
def test_penalties_lower_what_was_seen(sampled: Sampled, penalty: dict, wanted: int) -> None:
    assert sampled([3, 2.4, 0], penalties=token_seen(3), **penalty).tokens[0] == wanted


def test_repetition_makes_negative_logits_more_negative(sampled: Sampled) -> None:
    assert sampled([-1, -1.5], penalties=token_seen(0), repetition=[2.0], presence=[9]).tokens[0] == 1


def test_presence_and_frequency_look_only_at_counted_tokens(sampled: Sampled) -> None:
    assert sampled([3, 2], penalties=token_seen(0), presence=[9], frequency=[9]).tokens[0] == 0


PROBABILITIES = np.array([0.4, 0.3, 0.15, 0.1, 0.05])


@pytest.mark.parametrize(
    ("filters", "kept"),
    [
        ({}, 5),
        ({"top_k": [3]}, 3),
        ({"top_k": [9]}, 5),
        ({"top_p": [0.69]}, 2),
        ({"top_p": [0.71]}, 3),
        ({"top_p": [0.0]}, 1),
        ({"min_p": [0.3]}, 3),  # of 0.4
        ({"top_k": [2], "top_p": [0.58]}, 2),  # 0.4 of the 0.7 that top_k leaves is 0.571
        ({"top_k": [2], "top_p": [0.57]}, 1),
        ({"min_p": [0.3], "top_k": [2]}, 2),
    ],
)
def test_filters_leave_the_likeliest_in_their_proportions(sampled: Sampled, filters: dict, kept: int) -> None:
    logits = np.log(PROBABILITIES)[[2, 0, 4, 1, 3]]
    count = 3000
    rows = {name: value * count for name, value in filters.items()}
    drawn = sampled(*[logits.tolist()] * count, **rows, temperature=[1.0] * count, seed=range(count)).tokens
    found = np.bincount(drawn, minlength=5)[[1, 3, 0, 4, 2]] / count
    wanted = np.where(np.arange(5) < kept, PROBABILITIES, 0)
    np.testing.assert_allclose(found, wanted / wanted.sum(), atol=0.035)
    assert (found[kept:] == 0).all()


def test_temperature_flattens_before_min_p_looks(sampled: Sampled) -> None:
    logits = np.log(PROBABILITIES).tolist()  # 0.05 / 0.4 is 0.125, at temperature 2 its root: 0.35
    settings = {"min_p": [0.3] * 500, "temperature": [2.0] * 500, "seed": range(500)}
    assert set(sampled(*[logits] * 500, **settings).tokens.tolist()) == {0, 1, 2, 3, 4}


def test_a_draw_depends_on_the_seed_alone(sampled: Sampled) -> None:
    logits = np.log(PROBABILITIES).tolist()
    together = sampled(*[logits] * 20, temperature=[1.0] * 20, seed=range(20)).tokens.tolist()
    alone = [sampled(logits, temperature=[1.0], seed=[seed]).tokens[0] for seed in range(20)]
    assert together == alone
    assert len(set(together)) > 1


def test_the_smallest_temperature_is_greedy(sampled: Sampled) -> None:
    drawn = {sampled([1.0, 1.001, 0], temperature=[1e-30], seed=[seed]).tokens[0] for seed in range(20)}
    assert drawn == {1}


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_logits_that_are_not_numbers_fail_their_row_only(sampled: Sampled, bad: float) -> None:
    result = sampled([0, bad, 1], [0, 2, 1], temperature=[0, 0], logprobs=[3, 3])
    assert result.tokens.tolist() == [-1, 1]
    assert result.logprobs[0] == 0
    assert (result.top_tokens[0] == -1).all()


def test_a_row_with_everything_banned_fails(sampled: Sampled) -> None:
    assert sampled([1, 2], bias=bias_of_one_row({0: -np.inf, 1: -np.inf})).tokens[0] == -1
