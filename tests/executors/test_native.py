"""The native executor as a whole: the same bits however the work is cut, wrong batches refused, loading."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("corral._native", reason="the native module is not built", exc_type=ImportError)

from batches import TOKEN_FIELDS, Part, SampledBatch, blocks_for, make_batch, step, with_columns
from corral.executors.batch import COLUMNS, Bias, Masks, Penalties, StepResult
from corral.executors.native import NativeExecutor
from corral.executors.reference import ReferenceExecutor
from corral.models.ops import Add, AllReduce, Gated, Head, KVWrite, LayerNorm, Linear, RmsNorm, Select
from corral.models.program import Program
from corral.models.table import build_program
from corral.types import BLOCK_SIZE, CPU
from corral.weights.gguf_source import GGUFSource
from gguf_files import tiny_gemma3, tiny_llama
from op_programs import ProgramBuilder

TOKENS = np.random.default_rng(11).integers(0, 250, 330).tolist()
NUM_BLOCKS = 160

Make = Callable[..., NativeExecutor]


@pytest.fixture(scope="module", params=["llama", "gemma3"])
def program(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Program:
    path = tmp_path_factory.mktemp("native") / "tiny.gguf"
    write = partial(tiny_llama, heads=6, hidden=96) if request.param == "llama" else tiny_gemma3
    return build_program(GGUFSource.open(write(path)))


def open_native(program: Program, **fields: Any) -> NativeExecutor:
    sizes = {
        "num_blocks": NUM_BLOCKS * len(program.cache.groups),
        "max_tokens": 512,
        "max_sequences": 32,
        "threads": 2,
    }
    return NativeExecutor(program, **{**sizes, **fields})


def run(executor: NativeExecutor, *parts: Part) -> StepResult:
    rows = sum(len(part.tokens if part.rows is None else part.rows) for part in parts)
    groups = len(executor.cache.groups)
    return step(executor, make_batch(parts, groups=groups, logprobs=np.full(rows, 20, np.int32)))


def same_bits(found: StepResult, wanted: StepResult, rows: slice = slice(None)) -> None:
    for name in ("tokens", "logprobs", "top_tokens", "top_logprobs"):
        np.testing.assert_array_equal(getattr(found, name), getattr(wanted, name)[rows])


@pytest.fixture(scope="module")
def whole(program: Program) -> StepResult:
    """All of TOKENS in one step, alone, on one thread."""
    return run(open_native(program, threads=1), Part(TOKENS, blocks_for(len(TOKENS))))


@pytest.mark.parametrize("isa", ["scalar", "auto"])
def test_results_agree_with_the_reference(program: Program, isa: str) -> None:
    native, groups = open_native(program, isa=isa), len(program.cache.groups)
    reference = ReferenceExecutor(program, num_blocks=8 * groups, max_tokens=90)
    parts = [Part(TOKENS[:90], blocks_for(90))]
    batch = make_batch(parts, groups=groups, logprobs=np.full(90, 20, np.int32))
    found, wanted = step(native, batch), step(reference, batch)
    # Activations of eight bits: logits are near the float32 ones, far from any other's.
    spread = wanted.top_logprobs[:, 0] - wanted.top_logprobs[:, -1]
    error = np.abs(found.top_logprobs[:, 0] - wanted.top_logprobs[:, 0])
    assert np.median(error / spread) < 0.02
    assert (found.tokens == wanted.tokens).mean() > 0.85


@pytest.mark.parametrize("threads", [2, 3, 5])
def test_threads_do_not_change_a_bit(program: Program, whole: StepResult, threads: int) -> None:
    same_bits(run(open_native(program, threads=threads), Part(TOKENS, blocks_for(len(TOKENS)))), whole)


@pytest.mark.parametrize("chunks", [[1] * 40, [16, 16, 64, 1, 2, 100], [63, 65, 1], [329], [7, 250, 60]])
def test_prefill_chunks_do_not_change_a_bit(program: Program, whole: StepResult, chunks: list[int]) -> None:
    executor, start = open_native(program), 0
    for size in [*chunks, len(TOKENS) - sum(chunks)]:
        part = Part(TOKENS[start : start + size], blocks_for(len(TOKENS)), start)
        same_bits(run(executor, part), whole, slice(start, start + size))
        start += size


def test_company_does_not_change_a_bit(program: Program, whole: StepResult) -> None:
    executor = open_native(program)
    neighbours = [(17, 40), (1, 60), (100, 80)]  # how many tokens, first block
    for start, stop in [(0, 50), (50, 51), (51, 180), (180, 329), (329, 330)]:
        parts = [Part(TOKENS[5 : 5 + n], blocks_for(n, first), rows=[0]) for n, first in neighbours]
        parts.insert(2, Part(TOKENS[start:stop], blocks_for(len(TOKENS)), start))
        found = run(executor, *parts)
        picked = StepResult(*(getattr(found, name)[2 : 2 + stop - start] for name in TOKEN_FIELDS))
        same_bits(picked, whole, slice(start, stop))


def test_blocks_elsewhere_do_not_change_a_bit(program: Program, whole: StepResult) -> None:
    executor = open_native(program)
    blocks = np.random.default_rng(0).permutation(NUM_BLOCKS)[: len(blocks_for(len(TOKENS)))]
    run(executor, Part(TOKENS[::-1], blocks_for(len(TOKENS)), rows=[]))  # leaves other values in many of them
    same_bits(run(executor, Part(TOKENS, blocks.tolist())), whole)


def test_a_shared_prefix_gives_the_same_bits(program: Program, whole: StepResult) -> None:
    executor = open_native(program)
    own = blocks_for(len(TOKENS), first=60)
    run(executor, Part(TOKENS[:64], blocks_for(64), rows=[]))
    shared = [*blocks_for(64), *own[4:]]
    same_bits(run(executor, Part(TOKENS[64:], shared, 64)), whole, slice(64, None))


def test_a_decode_step_alone_is_the_same_in_a_split_long_context(program: Program) -> None:
    # More segments than one, so that few rows make the team share them.
    long = np.random.default_rng(1).integers(0, 250, 1100).tolist()
    blocks = blocks_for(len(long) + 1)
    one, many = open_native(program, threads=1), open_native(program, threads=4)
    for executor in (one, many):
        for start in range(0, len(long), 220):
            run(executor, Part(long[start : start + 220], blocks, start, rows=[]))
    part = Part([3], blocks, len(long))
    same_bits(run(many, part), run(one, part))


def test_rows_beyond_one_tile_of_logits_are_all_scored(program: Program, whole: StepResult) -> None:
    order = np.random.default_rng(2).permutation(len(TOKENS)).tolist()
    found = run(open_native(program), Part(TOKENS, blocks_for(len(TOKENS)), rows=order))
    np.testing.assert_array_equal(found.top_logprobs, whole.top_logprobs[order])


def broken(batch: SampledBatch, **fields: Any) -> SampledBatch:
    """The batch with other arrays; a name that belongs to the sampling rows or their columns goes there."""
    columns = {name: fields.pop(name) for name in list(fields) if name in COLUMNS.names}
    lists = {name: fields.pop(name) for name in list(fields) if hasattr(batch.sampling, name)}
    sampling = replace(with_columns(batch.sampling, **columns), **lists)
    return replace(batch, sampling=sampling, **fields)


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int32)


def floats(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


I32, F32 = np.int32, np.float32
WRONG: Sequence[dict[str, Any]] = [
    {"tokens": np.array([1, 2, 10**6], I32)},
    {"tokens": np.array([1, -1, 2], I32)},
    {"tokens": np.array([1, 2], I32)},
    {"tokens": np.array([1, 2, 3], np.int64)},
    {"tokens": np.array([1, 0, 2, 0, 3, 0], I32)[::2]},
    {"tokens": np.array([[1, 2, 3]], I32)},
    {"tokens": [1, 2, 3]},
    {"positions": np.array([0, 2, 0], I32)},
    {"positions": np.array([-1, 0, 0], I32)},
    {"positions": np.array([15, 16, 0], I32)},
    {"positions": np.array([0, 1, 2**31 - 1], I32)},
    {"starts": np.array([0, 2], I32)},
    {"starts": np.array([0, 4, 3], I32)},
    {"starts": np.array([1, 2, 3], I32)},
    {"starts": np.array([0, 2, 2], I32)},
    {"starts": np.array([], I32)},
    {"tables": np.array([[[0], [NUM_BLOCKS * 9]]] * 6, I32)},
    {"tables": np.array([[[0], [-1]]] * 6, I32)},
    {"tables": np.zeros((6, 2, 0), I32)},
    {"tables": np.zeros((6, 1, 1), I32)},
    {"tables": np.zeros((0, 2, 1), I32)},
    {"tables": np.zeros((2, 1), I32)},
    {"slots": np.array([0, 2], I32)},
    {"slots": np.array([-1, 0], I32)},
    {"slots": np.array([0], I32)},
    {"rows": np.array([0, 3], I32)},
    {"rows": np.array([-1, 0], I32)},
    {"rows": np.array([0], I32)},
    {"target": [0, 10**6]},
    {"target": [0, -2]},
    {"temperature": [np.nan, 0]},
    {"temperature": [-1, 0]},
    {"top_p": [np.inf, 1]},
    {"repetition": [0, 1]},
    {"logprobs": [0, 21]},
    {"columns": np.zeros(3, COLUMNS)},
    {"columns": np.zeros(2, COLUMNS)[::2]},
    {"columns": np.zeros(2, [(name, np.uint32) for name in "abcdefghijkl"])},
    {"columns": np.zeros((2, COLUMNS.itemsize), np.uint8)},
    {"penalties": Penalties(ints(0, 1, 1), ints(), ints())},
    {"penalties": Penalties(ints(0, 0), ints(), ints())},
    {"penalties": Penalties(ints(0, 1, 1), ints(5), ints())},
    {"penalties": Penalties(ints(0, 0, 0), ints(5), ints(1))},
    {"penalties": Penalties(ints(0, 1, 1), ints(10**6), ints(1))},
    {"penalties": Penalties(ints(0, 1, 1), ints(5), floats(1))},
    {"bias": Bias(ints(0, 1, 1), ints(-1), floats(1))},
    {"bias": Bias(ints(0, 1, 1), ints(1), floats(1, 1))},
    {"bias": Bias(ints(0, 1, 1), ints(1), floats(np.nan))},
    {"bias": Bias(ints(), ints(1), floats(1))},
]


@pytest.mark.parametrize("fields", WRONG, ids=str)
def test_a_wrong_batch_is_refused_and_the_next_one_runs(program: Program, fields: dict[str, Any]) -> None:
    executor = open_native(program, max_tokens=8, max_sequences=2)
    parts = [Part([4, 5], [0], rows=[0, 1]), Part([6], [1], rows=[])]
    good = make_batch(parts, groups=len(program.cache.groups))
    before = step(executor, good)
    with pytest.raises((ValueError, TypeError)):
        step(executor, broken(good, **fields))
    same_bits(step(executor, good), before)


@pytest.mark.parametrize(
    ("rows", "bits"),
    [
        (ints(0), lambda words: words),
        (ints(), lambda words: words),
        (ints(0, 1), lambda words: words),
        (ints(0, -2), lambda words: words),
        (ints(0, -1), lambda words: np.ascontiguousarray(words[:, 1:])),
        (ints(0, -1), lambda words: words[0]),
        (ints(0, -1), lambda words: words.view(I32)),
    ],
)
def test_wrong_masks_are_refused(program: Program, rows: np.ndarray, bits: Any) -> None:
    executor = open_native(program, max_tokens=8, max_sequences=2)
    batch = make_batch([Part([4, 5], [0])], groups=len(program.cache.groups))
    words = np.full((1, -(-program.vocab_size // 32)), 2**32 - 1, np.uint32)
    step(executor, broken(batch, masks=Masks(ints(0, -1), words)))
    with pytest.raises(ValueError, match=r"wrong batch"):
        step(executor, broken(batch, masks=Masks(rows, bits(words))))


def test_blocks_that_no_row_sees_need_not_be_there(tmp_path: Path) -> None:
    program = build_program(GGUFSource.open(tiny_gemma3(tmp_path / "m.gguf", window=32)))
    executor, groups = open_native(program), len(program.cache.groups)
    batch = make_batch([Part(TOKENS[:100], blocks_for(101), rows=[])], groups=groups)
    step(executor, batch)
    last = make_batch([Part([3], blocks_for(101), 100)], groups=groups)
    wanted = step(executor, last)
    for group, window in enumerate(program.cache.groups):
        for block in range(7):
            gap = last.tables.copy()
            gap[group, 0, block] = -1
            if window.window and (block + 1) * BLOCK_SIZE <= 101 - window.window:
                same_bits(step(executor, broken(last, tables=gap)), wanted)
            else:
                with pytest.raises(ValueError, match="blocks"):
                    step(executor, broken(last, tables=gap))


def test_more_tokens_or_sequences_than_promised_are_refused(program: Program) -> None:
    executor = open_native(program, max_tokens=4, max_sequences=2)
    with pytest.raises(ValueError, match="tokens"):
        run(executor, Part([1] * 5, [0]))
    with pytest.raises(ValueError, match="sequences"):
        run(executor, Part([1], [0]), Part([1], [1]), Part([1], [2]))


def test_a_step_without_tokens_gives_nothing(program: Program) -> None:
    executor = open_native(program)
    batch = make_batch([Part([1], [0], rows=[])])
    groups = len(program.cache.groups)
    empty = replace(
        batch,
        tokens=np.zeros(0, I32),
        positions=np.zeros(0, I32),
        starts=np.zeros(1, I32),
        slots=np.zeros(0, I32),
        tables=np.zeros((groups, 0, 1), I32),
    )
    assert step(executor, empty).tokens.shape == (0,)


def test_an_op_over_wrong_shapes_is_refused() -> None:
    def build(add: Callable[[ProgramBuilder, int, int], None]) -> None:
        builder = ProgramBuilder(8)
        add(builder, builder.table(np.zeros((8, 32))), builder.table(np.zeros((8, 64))))
        open_native(builder.build())

    def linear(builder: ProgramBuilder, narrow: int, wide: int) -> None:
        builder.add(Linear(narrow, (builder.weight(np.zeros((64, 64))),), (wide,), (None,)))

    cases: list[Callable[[ProgramBuilder, int, int], None]] = [
        linear,
        lambda builder, narrow, wide: builder.add(Add(narrow, wide, wide)),
        lambda builder, narrow, wide: builder.add(Add(narrow, 7, narrow)),
        lambda builder, narrow, wide: builder.add(RmsNorm(narrow, 0, narrow, 1e-6)),
        lambda builder, narrow, wide: builder.add(
            LayerNorm(narrow, builder.weight(np.ones(32)), builder.weight(np.ones(64)), narrow, 1e-6)
        ),
        lambda builder, narrow, wide: builder.add(KVWrite(narrow, narrow, builder.kv_layer(1, 64))),
        lambda builder, narrow, wide: builder.add(Select(narrow, wide)),
        lambda builder, narrow, wide: builder.add(Head(narrow, 0)),
        lambda builder, narrow, wide: builder.add(AllReduce(narrow, narrow)),
        lambda builder, narrow, wide: builder.add(Gated(narrow, narrow, narrow, "tanh")),
        lambda builder, narrow, wide: builder.add(Add(narrow, "wide", narrow)),
        lambda builder, narrow, wide: builder.add(Add(narrow, builder.view(wide, 33, 32), narrow)),
    ]
    for case in cases:
        with pytest.raises(ValueError, match="wrong program"):
            build(case)


def test_a_module_with_blocks_of_another_size_is_refused_at_import() -> None:
    program = "\n".join(
        [
            "import corral.types",
            "corral.types.BLOCK_SIZE = 8",
            "import corral.executors.native",
        ]
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "ImportError: corral._native keeps 16 positions in a KV block, and this corral 8" in done.stderr


def test_unknown_kernels_are_refused(program: Program) -> None:
    with pytest.raises(ValueError, match="mmx"):
        open_native(program, isa="mmx")


def test_every_tensor_is_reported_once_packed(program: Program) -> None:
    names: list[str] = []
    open_native(program, on_packed=names.append)
    assert names == [weight.name for weight in program.weights]


def test_a_tied_head_is_packed_once(tmp_path: Path) -> None:
    sizes = {
        tied: open_native(build_program(GGUFSource.open(tiny_llama(tmp_path / f"{tied}.gguf", tied=tied))))
        .memory[CPU]
        .weights
        for tied in (True, False)
    }
    assert sizes[True] < sizes[False] * 0.85


def test_a_closed_executor_says_so(program: Program) -> None:
    executor = open_native(program)
    executor.close()
    executor.close()
    with pytest.raises(RuntimeError, match="closed"):
        executor.buffer(0)


def test_buffer_numbers_are_checked(program: Program) -> None:
    executor = open_native(program)
    for index in (-1, len(program.buffers)):
        with pytest.raises(IndexError):
            executor.buffer(index)


def test_a_profile_splits_the_time_of_steps_and_changes_no_bit(program: Program, whole: StepResult) -> None:
    executor = open_native(program)
    part = Part(TOKENS, blocks_for(len(TOKENS)))
    same_bits(run(executor, part), whole)
    assert executor.profile_seconds() == {}
    executor.profile(True)
    begin = time.perf_counter()
    same_bits(run(executor, part), whole)
    elapsed = time.perf_counter() - begin
    executor.profile(False)
    seconds = executor.profile_seconds()
    kinds = {kind for kind in seconds if not kind.startswith("matmul ")}
    assert kinds == {"rows", "attention", "head", "waiting"}
    assert len(seconds) > len(kinds)
    assert min(seconds.values()) >= 0
    assert 0 < sum(seconds.values()) <= elapsed
    run(executor, part)
    assert executor.profile_seconds() == seconds


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")
def test_kv_memory_becomes_resident_as_blocks_are_written() -> None:
    builder = ProgramBuilder(8)
    x = builder.table(np.ones((8, 512)))
    for _ in range(64):
        builder.add(KVWrite(x, x, builder.kv_layer(4, 128)))
    executor = open_native(builder.build(), num_blocks=4096)  # 2 MB each
    before = resident_bytes()
    step(executor, make_batch([Part([1] * 20, blocks_for(20), rows=[])]))
    few = resident_bytes() - before
    step(executor, make_batch([Part([1] * 320, blocks_for(320), rows=[])]))
    many = resident_bytes() - before
    assert few <= 10 << 20
    assert 40 << 20 <= many <= 50 << 20


def test_an_idle_team_sleeps(program: Program) -> None:
    executor = open_native(program, threads=4)
    run(executor, Part(TOKENS, blocks_for(len(TOKENS))))
    time.sleep(0.05)
    before = time.process_time()
    time.sleep(0.4)
    assert time.process_time() - before < 0.1


def test_a_team_that_cannot_be_made_is_an_error_and_not_the_end_of_the_process() -> None:
    program = "\n".join(
        [
            "import resource",
            "from corral.executors.native import NativeExecutor",
            "from corral.models.program import Program",
            "resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))",
            "try:",
            "    empty = Program((), (), (), (), 1, 1)",
            "    NativeExecutor(empty, num_blocks=1, max_tokens=1, max_sequences=1, threads=5000)",
            "except RuntimeError as error:",
            "    print('refused:', error)",
        ]
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout[:8]) == (0, "refused:"), done.stderr
