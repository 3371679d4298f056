"""Route and Experts on the native executor, with each kind of kernel, against reference and single ops."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest

pytest.importorskip("corral._native", reason="the native module is not built", exc_type=ImportError)

from batches import Part, blocks_for, make_batch, step
from corral import _native
from corral.executors.native import NativeExecutor
from corral.executors.reference import ReferenceExecutor
from corral.models.ops import Activation, Experts, Gated, Linear, Route
from corral.models.program import Program
from corral.weights.qtensor import QTensor
from gguf_files import random_matrix
from op_programs import ProgramBuilder

ROWS = 150  # more than the kernels take of one expert at a time
COUNTS = (1, 2, 20, ROWS)


@pytest.fixture(params=_native.isas())
def isa(request: pytest.FixtureRequest) -> str:
    return request.param


def random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def run_native(program: Program, rows: Sequence[int], isa: str, threads: int = 2) -> NativeExecutor:
    """An executor after one step over these rows of the builder's tables."""
    executor = NativeExecutor(
        program, num_blocks=16, max_tokens=ROWS, max_sequences=1, threads=threads, isa=isa
    )
    step(executor, make_batch([Part(rows, blocks_for(len(rows)), rows=[])]))
    return executor


def run_reference(program: Program, rows: Sequence[int]) -> ReferenceExecutor:
    executor = ReferenceExecutor(program, num_blocks=16, max_tokens=ROWS)
    step(executor, make_batch([Part(rows, blocks_for(len(rows)), rows=[])]))
    return executor


def routing(logits: np.ndarray, used: int, renormalise: bool = True) -> tuple[Program, int, int]:
    builder = ProgramBuilder(ROWS)
    x, chosen, weights = builder.table(logits), builder.buffer(used), builder.buffer(used)
    builder.add(Route(x, chosen, weights, renormalise))
    return builder.build(), chosen, weights


@pytest.mark.parametrize(("experts", "used"), [(1, 1), (8, 1), (8, 2), (8, 8), (128, 8)])
@pytest.mark.parametrize("renormalise", [True, False])
def test_route_weighs_the_likeliest_experts(experts: int, used: int, renormalise: bool, isa: str) -> None:
    logits = 3 * random(ROWS, experts)
    program, chosen, weights = routing(logits, used, renormalise)
    probs = np.exp(logits.astype(float))
    probs /= probs.sum(axis=1, keepdims=True)
    order = np.argsort(-probs, axis=1)[:, :used]
    wanted = np.take_along_axis(probs, order, axis=1)
    if renormalise:
        wanted /= wanted.sum(axis=1, keepdims=True)
    for executor in (run_native(program, range(ROWS), isa), run_reference(program, range(ROWS))):
        np.testing.assert_array_equal(executor.buffer(chosen), order)
        np.testing.assert_allclose(executor.buffer(weights), wanted, rtol=1e-5)


def test_route_takes_the_first_of_equal_experts(isa: str) -> None:
    program, chosen, weights = routing(np.array([[0, 2, 1, 2, 2, 1]] * ROWS, np.float32), 4)
    for executor in (run_native(program, range(3), isa), run_reference(program, range(3))):
        np.testing.assert_array_equal(executor.buffer(chosen), [[1, 3, 4, 2]] * 3)
        np.testing.assert_allclose(executor.buffer(weights)[0, :3], [1 / (3 + np.exp(-1))] * 3, rtol=1e-6)


def test_route_of_a_row_without_numbers_gives_it_none(isa: str) -> None:
    logits = random(ROWS, 8)
    logits[1] = np.nan
    program, chosen, weights = routing(logits, 3)
    executor = run_native(program, range(3), isa)
    assert np.isnan(executor.buffer(weights)).all(axis=1).tolist() == [False, True, False]
    assert (executor.buffer(chosen) < 8).all()


@dataclass(frozen=True)
class Shape:
    """A mixture of experts, and the types of its matrices."""

    experts: int
    used: int
    width: int
    ffn: int
    types: tuple[str, str, str] = ("F32", "F32", "F32")  # gate, up, down

    def stack(self, number: int) -> QTensor:
        """Matrices of all experts: 0 = gate, 1 = up, 2 = down."""
        rows, cols = (self.width, self.ffn) if number == 2 else (self.ffn, self.width)
        rng, kind = np.random.default_rng(number), self.types[number]
        made = [random_matrix(rng, kind, rows, cols, cols**-0.5) for _ in range(self.experts)]
        return QTensor(f"stack{number}", (rows, cols), kind, tuple(raw for _, raw in made))


SHAPES = (
    Shape(1, 1, 32, 32),
    Shape(4, 2, 24, 20),
    Shape(5, 5, 40, 7),
    Shape(16, 2, 96, 136),
    Shape(16, 1, 64, 64, ("F16", "BF16", "F32")),
    Shape(16, 3, 64, 96, ("Q8_0", "Q8_0", "Q8_0")),
    Shape(4, 2, 32, 32, ("Q4_0", "Q5_1", "Q8_0")),
    Shape(4, 2, 96, 64, ("Q8_0", "F16", "Q4_1")),
    Shape(8, 2, 256, 512, ("Q4_K", "Q4_K", "Q6_K")),
    Shape(4, 2, 256, 64, ("Q5_K", "Q4_K", "F32")),
)


def mixture(
    shape: Shape, *halves: range, activation: Activation = Activation.SILU
) -> tuple[Program, list[int]]:
    """A Program with an Experts op over each of these ranges of experts, by default all, and their outs."""
    builder = ProgramBuilder(ROWS)
    x, logits = (
        builder.table(random(ROWS, shape.width)),
        builder.table(2 * random(ROWS, shape.experts, seed=1)),
    )
    chosen, weights = builder.buffer(shape.used), builder.buffer(shape.used)
    builder.add(Route(logits, chosen, weights, renormalise=True))
    outs = []
    for half in halves or (range(shape.experts),):
        parts = [shape.stack(number).experts_between(half.start, half.stop) for number in range(3)]
        stacks = [builder.tensor(part) for part in parts]
        outs.append(builder.buffer(shape.width))
        builder.add(Experts(x, chosen, weights, *stacks, outs[-1], activation, half.start))
    return builder.build(), outs


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("count", COUNTS)
def test_experts_agree_with_the_reference(shape: Shape, count: int, isa: str) -> None:
    program, (out,) = mixture(shape)
    found = run_native(program, range(count), isa).buffer(out)
    wanted = run_reference(program, range(count)).buffer(out)
    quantised = any(kind.startswith("Q") for kind in shape.types)
    # Quantised matrices are multiplied with activations of eight bits.
    error = np.abs(found - wanted).max() / np.abs(wanted).max()
    assert error < (0.03 if quantised else 1e-5)


@pytest.mark.parametrize("activation", Activation)
def test_experts_apply_their_activation(activation: Activation, isa: str) -> None:
    program, (out,) = mixture(SHAPES[3], activation=activation)
    wanted = run_reference(program, range(9)).buffer(out)
    np.testing.assert_allclose(run_native(program, range(9), isa).buffer(out), wanted, rtol=0, atol=1e-5)


def single_expert(shape: Shape, expert: int) -> tuple[Program, int]:
    """The same feed-forward by the ops of a model without experts."""
    builder = ProgramBuilder(ROWS)
    x = builder.table(random(ROWS, shape.width))
    gate, up, out = builder.buffer(shape.ffn), builder.buffer(shape.ffn), builder.buffer(shape.width)
    matrices = [builder.tensor(shape.stack(number).expert(expert)) for number in range(3)]
    builder.add(Linear(x, (matrices[0], matrices[1]), (gate, up), (None, None)))
    builder.add(Gated(gate, up, gate, Activation.SILU))
    builder.add(Linear(gate, (matrices[2],), (out,), (None,)))
    return builder.build(), out


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_experts_give_the_bits_of_their_matrices_one_by_one(shape: Shape, isa: str) -> None:
    program, (out,) = mixture(shape)
    executor = run_native(program, range(ROWS), isa)
    chosen = next(op.chosen for op in program.ops if isinstance(op, Experts))
    weights = next(op.weights for op in program.ops if isinstance(op, Experts))
    wanted = np.zeros((ROWS, shape.width), np.float32)
    for expert in range(shape.experts):
        rows, ranks = np.nonzero(executor.buffer(chosen) == expert)
        if len(rows):
            alone, result = single_expert(shape, expert)
            products = run_native(alone, rows.tolist(), isa).buffer(result)
            wanted[rows] += executor.buffer(weights)[rows, ranks, None] * products
    np.testing.assert_array_equal(executor.buffer(out), wanted)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_row_has_the_same_bits_alone_and_in_company(shape: Shape, isa: str) -> None:
    program, (out,) = mixture(shape)
    whole = run_native(program, range(ROWS), isa, threads=1).buffer(out)
    for rows in ([5], [149, 3, 77], list(range(40, 110))):
        for threads in (1, 3):
            np.testing.assert_array_equal(run_native(program, rows, isa, threads).buffer(out), whole[rows])


def test_ranges_of_experts_add_up_to_the_whole(isa: str) -> None:
    shape = SHAPES[3]
    undivided, (out,) = mixture(shape)
    wanted = run_reference(undivided, range(ROWS)).buffer(out)
    program, outs = mixture(shape, range(3), range(3, 16))
    for executor in (run_native(program, range(ROWS), isa), run_reference(program, range(ROWS))):
        np.testing.assert_allclose(sum(map(executor.buffer, outs)), wanted, rtol=0, atol=1e-5)
        chosen = executor.buffer(next(op.chosen for op in program.ops if isinstance(op, Experts)))
        np.testing.assert_array_equal(executor.buffer(outs[0])[(chosen >= 3).all(axis=1)], 0)
