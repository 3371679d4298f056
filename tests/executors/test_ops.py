"""Every op on the native executor, with each kind of kernel, against the reference."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("corral._native", reason="the native module is not built", exc_type=ImportError)

from batches import Part, blocks_for, make_batch, step
from corral.config import ISAS
from corral.executors.native import NativeExecutor
from corral.executors.reference import ReferenceExecutor
from corral.models.cache import KVLayer
from corral.models.ops import (
    Activation,
    Add,
    Attention,
    Gated,
    Head,
    Input,
    KVWrite,
    LayerNorm,
    Linear,
    Output,
    RmsNorm,
    Rope,
    RopeStyle,
    Select,
)
from corral.models.program import Program
from op_programs import ProgramBuilder

VOCAB = 96
COUNTS = (1, 2, 7, 33, 96)


@pytest.fixture(params=[isa for isa in ISAS if isa != "auto"])
def isa(request: pytest.FixtureRequest) -> str:
    empty = Program((), (), (), (), 1, 1)
    try:
        NativeExecutor(empty, num_blocks=1, max_tokens=1, max_sequences=1, threads=1, isa=request.param)
    except ValueError as error:
        pytest.skip(str(error))
    return request.param


def values(width: int, seed: int = 0, spread: float = 1.0) -> np.ndarray:
    """A table [VOCAB, width]: as halves, so that a half-precision cache holds it exactly."""
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((VOCAB, width)) * spread).astype(np.float16).astype(np.float32)


def compare(
    builder: ProgramBuilder,
    buffers: Sequence[int],
    steps: Sequence[Sequence[Part]],
    isa: str,
    *,
    threads: int = 2,
    num_blocks: int = 128,
    tolerance: float = 2e-5,
) -> None:
    """Run the steps on both executors and compare these buffers after each."""
    program = builder.build()
    native = NativeExecutor(
        program, num_blocks=num_blocks, max_tokens=VOCAB, max_sequences=16, threads=threads, isa=isa
    )
    reference = ReferenceExecutor(program, num_blocks=num_blocks, max_tokens=VOCAB)
    for parts in steps:
        batch = make_batch(parts)
        step(native, batch)
        step(reference, batch)
        for index in buffers:
            found, wanted = native.buffer(index), reference.buffer(index)
            assert found.shape == wanted.shape
            np.testing.assert_allclose(found, wanted, rtol=tolerance, atol=tolerance)
    native.close()


def whole(count: int, start: int = 0, blocks: Sequence[int] | None = None) -> list[Part]:
    """One sequence of tokens 0, 1, 2 ..., wanting no logits."""
    return [Part(range(count), blocks_for(start + count) if blocks is None else blocks, start, rows=[])]


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("width", [1, 8, 33, 576])
def test_embed_gives_scaled_rows(count: int, width: int, isa: str) -> None:
    builder = ProgramBuilder(VOCAB)
    compare(builder, [builder.table(values(width)), builder.table(values(width), 25.5)], [whole(count)], isa)


@pytest.mark.parametrize("rows", [[], [0], [4, 9, 2], list(range(40))])
@pytest.mark.parametrize("width", [1, 24, 576])
def test_a_program_may_take_rows_and_give_rows(rows: list[int], width: int, isa: str) -> None:
    builder = ProgramBuilder(VOCAB)
    x, out, chosen = builder.buffer(width), builder.buffer(width), builder.buffer(width, selected=True)
    builder.add(Input(x))
    builder.add(Add(x, x, out))
    builder.add(Select(out, chosen))
    builder.add(Output(chosen))
    inputs = np.random.default_rng(4).standard_normal((40, width)).astype(np.float32)
    batch = replace(make_batch([Part([0] * 40, blocks_for(40), rows=rows)]), inputs=inputs)
    native = NativeExecutor(builder.build(), num_blocks=3, max_tokens=40, max_sequences=1, threads=2, isa=isa)
    reference = ReferenceExecutor(builder.build(), num_blocks=3, max_tokens=40)
    for executor in (native, reference):
        result = step(executor, batch)
        assert result.tokens.tolist() == [-1] * len(rows)
        np.testing.assert_array_equal(result.vectors, 2 * inputs[rows])
    for wrong in (None, inputs[:39], inputs[:, : width - 1], inputs.astype(np.float64)):
        with pytest.raises(ValueError, match="wrong batch"):
            step(native, replace(batch, inputs=wrong))


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize(("width", "heads"), [(1, 1), (8, 1), (24, 3), (100, 1), (576, 1), (512, 2), (36, 4)])
def test_rms_norm_normalises_each_head(count: int, width: int, heads: int, isa: str) -> None:
    builder = ProgramBuilder(VOCAB)
    x = builder.table(values(width, spread=30))
    out, weight = builder.buffer(width), builder.weight(values(width // heads, 1)[0])
    builder.add(RmsNorm(x, weight, out, 1e-6, heads))
    builder.add(RmsNorm(x, weight, x, 1e-2, heads))
    compare(builder, [x, out], [whole(count)], isa)


def test_rms_norm_of_zeros_is_zero(isa: str) -> None:
    builder = ProgramBuilder(VOCAB)
    x = builder.table(np.zeros((VOCAB, 32)))
    builder.add(RmsNorm(x, builder.weight(np.ones(32)), x, 1e-6))
    compare(builder, [x], [whole(3)], isa)


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("width", [1, 8, 33, 100, 576])
def test_layer_norm_normalises_each_row(count: int, width: int, isa: str) -> None:
    builder = ProgramBuilder(VOCAB)
    x = builder.table(values(width, spread=30) + 20)
    out = builder.buffer(width)
    weight, bias = (builder.weight(values(width, seed)[0]) for seed in (1, 2))
    builder.add(LayerNorm(x, weight, bias, out, 1e-6))
    builder.add(LayerNorm(x, weight, bias, x, 1e-2))
    compare(builder, [x, out], [whole(count)], isa)


def test_layer_norm_of_equal_elements_is_its_bias(isa: str) -> None:
    builder = ProgramBuilder(VOCAB)
    x = builder.table(np.full((VOCAB, 32), 7))
    bias = values(32)[0]
    builder.add(LayerNorm(x, builder.weight(np.ones(32)), builder.weight(bias), x, 1e-6))
    native = NativeExecutor(builder.build(), num_blocks=1, max_tokens=3, max_sequences=1, threads=1, isa=isa)
    step(native, make_batch(whole(3)))
    np.testing.assert_array_equal(native.buffer(x), np.tile(bias, (3, 1)))


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("cols", [32, 96, 576])
def test_linear_with_several_matrices_gives_each_product(count: int, cols: int, isa: str) -> None:
    rng = np.random.default_rng(1)
    builder = ProgramBuilder(VOCAB)
    x = builder.table(values(cols))
    widths = (1, 7, 8, 64, 100)
    weights = tuple(builder.weight(rng.standard_normal((width, cols))) for width in widths)
    outs = tuple(builder.buffer(width) for width in widths)
    biases = tuple(builder.weight(rng.standard_normal(w)) if i % 2 else None for i, w in enumerate(widths))
    builder.add(Linear(x, weights, outs, biases))
    compare(builder, outs, [whole(count)], isa, tolerance=1e-4)


@pytest.mark.parametrize("style", RopeStyle)
@pytest.mark.parametrize(
    ("heads", "head_dim", "rotated"), [(1, 8, 8), (3, 24, 24), (2, 64, 64), (2, 80, 20), (1, 6, 2)]
)
def test_rope_rotates_by_position(
    style: RopeStyle, heads: int, head_dim: int, rotated: int, isa: str
) -> None:
    builder = ProgramBuilder(VOCAB)
    x, y = (builder.table(values(heads * head_dim, seed)) for seed in (0, 1))
    out = builder.buffer(heads * head_dim)
    builder.add(Rope(x, out, heads, frequencies(10000.0, rotated), style))
    builder.add(Rope(y, y, heads, frequencies(1e6, rotated), style, magnitude=1.25))
    far = 131000
    steps = [whole(9), whole(5, start=far, blocks=[0] * (far // 16 + 1)), whole(1, start=17)]
    compare(builder, [x, out, y], steps, isa)


def frequencies(base: float, rotated: int) -> tuple[float, ...]:
    return tuple(base ** (-2 * i / rotated) for i in range(rotated // 2))


def test_ropes_with_the_same_and_other_parameters_do_not_mix(isa: str) -> None:
    builder = ProgramBuilder(VOCAB)
    ropes = []
    for base, magnitude in [(1e4, 1.0), (1e6, 1.0), (1e4, 1.0), (1e4, 2.0)]:
        ropes.append(builder.table(values(32)))
        builder.add(Rope(ropes[-1], ropes[-1], 2, frequencies(base, 16), RopeStyle.HALF, magnitude))
    compare(builder, ropes, [whole(40)], isa)


def test_pairs_of_frequency_zero_stand_still(isa: str) -> None:
    builder = ProgramBuilder(VOCAB)
    x, out = builder.table(values(32)), builder.buffer(32)
    builder.add(Rope(x, out, 1, (*frequencies(1e4, 16), *[0.0] * 8), RopeStyle.HALF))
    native = NativeExecutor(builder.build(), num_blocks=2, max_tokens=32, max_sequences=1, threads=1, isa=isa)
    step(native, make_batch(whole(20)))
    moved = (native.buffer(out) != native.buffer(x)).any(axis=0)
    assert moved.tolist() == ([True] * 8 + [False] * 8) * 2


@pytest.mark.parametrize("count", COUNTS)
def test_ops_over_views_give_the_bits_of_ops_over_buffers(count: int, isa: str) -> None:
    rng = np.random.default_rng(3)
    fused, down = rng.standard_normal((64, 64)), rng.standard_normal((24, 32))
    parts = [(0, 32), (32, 16), (48, 16)]  # start and width of q, k and v

    def results(views: bool) -> list[np.ndarray]:
        builder = ProgramBuilder(VOCAB)
        x, layer = builder.table(values(64)), builder.kv_layer(1, 16)
        if views:
            qkv = builder.buffer(64)
            builder.add(Linear(x, (builder.weight(fused),), (qkv,), (None,)))
            q, k, v = (builder.view(qkv, *part) for part in parts)
            attended = builder.view(builder.table(values(40, 1)), 8, 32)
        else:
            q, k, v = (builder.buffer(width) for _, width in parts)
            weights = tuple(builder.weight(fused[start : start + width]) for start, width in parts)
            builder.add(Linear(x, weights, (q, k, v), (None,) * 3))
            attended = builder.buffer(32)
        out = builder.buffer(24)
        builder.add(Rope(k, k, 1, frequencies(1e4, 16), RopeStyle.HALF))
        builder.add(KVWrite(k, v, layer))
        builder.add(Attention(q, attended, layer, 2, 0.25))
        builder.add(Add(q, attended, q))
        builder.add(Linear(attended, (builder.weight(down),), (out,), (None,)))
        found = []
        for executor in (
            NativeExecutor(
                builder.build(), num_blocks=6, max_tokens=VOCAB, max_sequences=1, threads=2, isa=isa
            ),
            ReferenceExecutor(builder.build(), num_blocks=6, max_tokens=VOCAB),
        ):
            step(executor, make_batch(whole(count)))
            found += [executor.buffer(index) for index in (q, k, v, attended, out)]
        return found

    for found, wanted in zip(results(True)[:5], results(False)[:5], strict=True):
        np.testing.assert_array_equal(found, wanted)
    for found, wanted in zip(results(True)[5:], results(False)[5:], strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("width", [1, 8, 31, 576])
def test_add_gives_the_sum(width: int, isa: str) -> None:
    builder = ProgramBuilder(VOCAB)
    x, y, out = builder.table(values(width, 0)), builder.table(values(width, 1)), builder.buffer(width)
    builder.add(Add(x, y, out))
    builder.add(Add(x, out, x))
    builder.add(Add(x, y, y))
    compare(builder, [x, y, out], [whole(33)], isa)


@pytest.mark.parametrize("activation", Activation)
@pytest.mark.parametrize(("width", "spread"), [(1, 1.0), (30, 3.0), (1536, 1.0), (64, 300.0)])
def test_gated_activates_the_gate(activation: Activation, width: int, spread: float, isa: str) -> None:
    builder = ProgramBuilder(VOCAB)
    gate, up = builder.table(values(width, 0, spread)), builder.table(values(width, 1))
    out = builder.buffer(width)
    builder.add(Gated(gate, up, out, activation))
    builder.add(Gated(gate, up, gate, activation))
    compare(builder, [gate, out], [whole(40)], isa)


def attention(
    heads: int,
    kv_heads: int,
    head_dim: int,
    window: int | None = None,
    spread: float = 1.0,
    softcap: float = 0.0,
) -> tuple[ProgramBuilder, int]:
    builder = ProgramBuilder(VOCAB)
    return builder, attend(builder, heads, KVLayer(kv_heads, head_dim, head_dim, window), spread, softcap)


def attend(
    builder: ProgramBuilder, heads: int, kv: KVLayer, spread: float = 1.0, softcap: float = 0.0
) -> int:
    """One layer's attention over tables of its own; gives its output."""
    number = len(builder.kv_layers)
    q = builder.table(values(heads * kv.key_size, number, spread))
    k = builder.table(values(kv.kv_heads * kv.key_size, number + 1))
    v = builder.table(values(kv.kv_heads * kv.value_size, number + 2))
    layer = builder.kv_layer(kv.kv_heads, kv.key_size, kv.window, kv.value_size)
    out = builder.buffer(heads * kv.value_size)
    builder.add(KVWrite(k, v, layer))
    builder.add(Attention(q, out, layer, heads, kv.key_size**-0.5, softcap))
    return out


@pytest.mark.parametrize("head_dim", [4, 8, 24, 64, 80, 128, 256])
@pytest.mark.parametrize(("heads", "kv_heads"), [(1, 1), (4, 1), (9, 3), (6, 6), (7, 1), (16, 2)])
def test_attention_reads_the_whole_sequence(head_dim: int, heads: int, kv_heads: int, isa: str) -> None:
    builder, out = attention(heads, kv_heads, head_dim)
    compare(builder, [out], [whole(80), whole(1, start=80), whole(3, start=81)], isa)


@pytest.mark.parametrize("softcap", [0.5, 50.0])
@pytest.mark.parametrize(("spread", "head_dim"), [(1.0, 12), (1.0, 80), (30.0, 64), (1.0, 256)])
def test_attention_caps_its_scores(softcap: float, spread: float, head_dim: int, isa: str) -> None:
    builder, out = attention(6, 2, head_dim, 50, spread, softcap)
    compare(builder, [out], [whole(80), whole(1, start=80), whole(3, start=81)], isa, tolerance=5e-5)


@pytest.mark.parametrize(("key_size", "value_size"), [(24, 16), (192, 128), (64, 80), (16, 64), (12, 6)])
@pytest.mark.parametrize(("threads", "window"), [(1, None), (3, None), (2, 70)])
def test_attention_takes_values_of_another_size_than_keys(
    key_size: int, value_size: int, threads: int, window: int | None, isa: str
) -> None:
    builder = ProgramBuilder(VOCAB)
    out = attend(builder, 6, KVLayer(2, key_size, value_size, window))
    steps = [whole(96, start) for start in range(0, 384, 96)] + [whole(1, start=384), whole(3, start=385)]
    compare(builder, [out], steps, isa, threads=threads)


def test_layers_of_two_pools_have_blocks_and_windows_of_their_own(isa: str) -> None:
    builder = ProgramBuilder(VOCAB)
    layers = [KVLayer(3, 64, 64, 40), KVLayer(2, 48, 32), KVLayer(3, 64, 64, 20), KVLayer(2, 48, 32)]
    outs = [attend(builder, 6, layer) for layer in layers]
    program = builder.build()
    cache, counts = program.cache, (24, 13)
    assert [group.pool for group in cache.groups] == [0, 1, 0] and len(cache.block_bytes) == 2
    native = NativeExecutor(program, num_blocks=counts, max_tokens=VOCAB, max_sequences=1, threads=2, isa=isa)
    reference = ReferenceExecutor(program, num_blocks=counts, max_tokens=VOCAB)
    table = np.array([np.arange(0, 24, 2), np.arange(12, 0, -1), np.arange(1, 24, 2)], np.int32)[:, None]
    for start, count in [(0, 96), (96, 80), (176, 1)]:
        batch = replace(make_batch([Part(range(count), range(12), start, rows=[])]), tables=table)
        step(native, batch)
        step(reference, batch)
        for out in outs:
            np.testing.assert_allclose(native.buffer(out), reference.buffer(out), rtol=2e-5, atol=2e-5)
    for group, most in ((0, 24), (1, 13), (2, 24)):
        wrong = table.copy()
        wrong[group, 0, 11] = most
        with pytest.raises(ValueError, match="numbers of blocks"):
            step(native, replace(batch, tables=wrong))


@pytest.mark.parametrize("window", [1, 2, 15, 16, 17, 64, 65, 90, 300, 10000])
@pytest.mark.parametrize(("heads", "kv_heads", "head_dim"), [(2, 1, 16), (4, 1, 256), (3, 3, 12)])
def test_attention_sees_the_last_positions_of_its_window(
    window: int, heads: int, kv_heads: int, head_dim: int, isa: str
) -> None:
    builder, out = attention(heads, kv_heads, head_dim, window)
    steps = [whole(96, start) for start in range(0, 576, 96)] + [whole(1, start=576), whole(2, start=577)]
    compare(builder, [out], steps, isa)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_attention_over_a_long_context_agrees_however_it_is_split(threads: int, isa: str) -> None:
    builder, out = attention(2, 1, 64)
    steps = [whole(96, start) for start in range(0, 1056, 96)] + [whole(1, start=1056)]
    compare(builder, [out], steps, isa, threads=threads)


def test_attention_of_several_sequences_keeps_them_apart(isa: str) -> None:
    builder, out = attention(6, 2, 24)
    # Blocks of the three sequences are interleaved; lengths and progress differ.
    tables = [list(range(start, 60, 3)) for start in range(3)]
    steps = [
        [Part(range(20), tables[0], 0, rows=[]), Part(range(5, 6), tables[1], 0, rows=[])],
        [Part(range(50, 90), tables[2], 0, rows=[]), Part([3], tables[0], 20, rows=[])],
        [Part([9], tables[b], start, rows=[]) for b, start in enumerate((21, 1, 40))],
        [Part(range(33), tables[1], 2, rows=[]), Part([1, 2], tables[2], 41, rows=[])],
    ]
    compare(builder, [out], steps, isa)


@pytest.mark.parametrize("window", [None, 40])
@pytest.mark.parametrize(
    ("heads", "kv_heads", "head_dim"), [(1, 1, 64), (9, 3, 24), (4, 1, 64), (16, 2, 20), (30, 1, 32)]
)
def test_attention_gives_a_row_the_same_bits_in_any_chunks_and_threads(
    heads: int, kv_heads: int, head_dim: int, window: int | None, isa: str
) -> None:
    builder, out = attention(heads, kv_heads, head_dim, window)
    program = builder.build()

    def rows(threads: int, chunks: Sequence[int]) -> np.ndarray:
        native = NativeExecutor(
            program, num_blocks=128, max_tokens=VOCAB, max_sequences=1, threads=threads, isa=isa
        )
        found, start = [], 0
        for count in chunks:
            tokens = np.arange(start, start + count) % VOCAB
            step(native, make_batch([Part(tokens, blocks_for(start + count), start, rows=[])]))
            found.append(native.buffer(out))
            start += count
        native.close()
        return np.concatenate(found)

    wanted = rows(1, [75] * 4)
    for threads, chunks in [(2, [1] * 300), (3, [7, 90, 3, 80, 96, 24])]:
        np.testing.assert_array_equal(rows(threads, chunks), wanted)


@pytest.mark.parametrize("rows", [[], [19], [18, 19, 20, 39], [7, 3, 3, 4, 30, 22], list(range(40))])
def test_rope_and_attention_of_wanted_rows_give_the_bits_of_all_rows(rows: list[int], isa: str) -> None:
    builder = ProgramBuilder(VOCAB)
    q, k, v = builder.table(values(96)), builder.table(values(32, 1)), builder.table(values(32, 2))
    chosen, layer = builder.buffer(96, selected=True), builder.kv_layer(1, 32, 25)
    everyone, wanted = builder.buffer(96), builder.buffer(96, selected=True)
    builder.add(Select(q, chosen))
    builder.add(KVWrite(k, v, layer))
    for x, out in [(q, everyone), (chosen, wanted)]:
        builder.add(Rope(x, x, 3, frequencies(10000.0, 32), RopeStyle.HALF))
        builder.add(Attention(x, out, layer, 3, 0.2))
    parts = [
        Part(range(20), range(2), rows=[row for row in rows if row < 20]),
        Part(range(20, 40), range(2, 4), rows=[row - 20 for row in rows if row >= 20]),
    ]
    compare(builder, [chosen, wanted, everyone], [parts], isa)
    native = NativeExecutor(
        builder.build(), num_blocks=4, max_tokens=VOCAB, max_sequences=2, threads=2, isa=isa
    )
    step(native, make_batch(parts))
    np.testing.assert_array_equal(native.buffer(wanted), native.buffer(everyone)[rows])
    native.close()


def test_attention_with_large_scores_stays_exact(isa: str) -> None:
    builder, out = attention(4, 2, 64, spread=200.0)
    compare(builder, [out], [whole(90), whole(1, start=90)], isa, tolerance=1e-4)


def test_attention_never_reads_what_an_earlier_sequence_left(isa: str) -> None:
    table = values(16, 1)
    table[50:] = np.nan
    builder = ProgramBuilder(VOCAB)
    q, k, v = builder.table(values(32)), builder.table(table), builder.table(table)
    out, layer = builder.buffer(32), builder.kv_layer(1, 16, None)
    builder.add(KVWrite(k, v, layer))
    builder.add(Attention(q, out, layer, 2, 0.25))
    native = NativeExecutor(builder.build(), num_blocks=8, max_tokens=64, max_sequences=1, threads=1, isa=isa)
    step(native, make_batch([Part([50] * 48, blocks_for(48), rows=[])]))
    assert np.isnan(native.buffer(out)).all()
    step(native, make_batch([Part(range(20), blocks_for(20), rows=[])]))
    assert np.isfinite(native.buffer(out)).all()


@pytest.mark.parametrize("softcap", [0.0, 5.0])
@pytest.mark.parametrize("rows", [[0], [4, 9, 2], list(range(40)), [39] * 3])
def test_select_and_head_give_the_logits_of_the_wanted_rows(
    rows: list[int], softcap: float, isa: str
) -> None:
    rng = np.random.default_rng(5)
    builder = ProgramBuilder(VOCAB)
    x, chosen = builder.table(values(64)), builder.buffer(64, selected=True)
    builder.add(Select(x, chosen))
    builder.add(RmsNorm(chosen, builder.weight(np.ones(64)), chosen, 1e-6))
    builder.add(Head(chosen, builder.weight(rng.standard_normal((VOCAB, 64))), softcap))
    program = builder.build()
    batch = make_batch(
        [Part(range(40), blocks_for(40), rows=rows)],
        logprobs=np.full(len(rows), 20, np.int32),
        target=np.arange(len(rows), dtype=np.int32) - 1,
    )
    native = NativeExecutor(program, num_blocks=3, max_tokens=40, max_sequences=1, threads=2, isa=isa)
    reference = ReferenceExecutor(program, num_blocks=3, max_tokens=40)
    found, wanted = step(native, batch), step(reference, batch)
    np.testing.assert_array_equal(found.tokens, wanted.tokens)
    np.testing.assert_array_equal(found.top_tokens, wanted.top_tokens)
    np.testing.assert_allclose(found.logprobs, wanted.logprobs, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found.top_logprobs, wanted.top_logprobs, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(native.buffer(chosen), reference.buffer(chosen), rtol=1e-4, atol=1e-5)
