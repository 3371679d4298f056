from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corral.models.placement import Value, place_values
from corral.models.program import (
    OPERANDS,
    Activation,
    Add,
    Embed,
    Gated,
    Linear,
    Op,
    RmsNorm,
    Rope,
    RopeStyle,
    Select,
)


@st.composite
def graphs(draw: st.DrawFn) -> tuple[list[Op], list[Value]]:
    """Random ops, each over values that exist; widths and selection vary."""
    values = [Value(0, "v0", 4)]
    ops: list[Op] = [Embed(0, 0)]

    def new(width: int, selected: bool) -> int:
        values.append(Value(len(values), f"v{len(values)}", width, selected))
        return values[-1].index

    def pick(like: Value | None = None) -> Value:
        same = [v for v in values if like is None or (v.width, v.selected) == (like.width, like.selected)]
        return draw(st.sampled_from(same))

    for _ in range(draw(st.integers(1, 25))):
        x = pick()
        y = pick(like=x)
        kind = draw(st.sampled_from(["norm", "add", "gated", "linear", "rope", "select"]))
        if kind == "norm":
            ops.append(RmsNorm(x.index, 0, new(x.width, x.selected), 1e-5))
        elif kind == "add":
            ops.append(Add(x.index, y.index, new(x.width, x.selected)))
        elif kind == "gated":
            ops.append(Gated(x.index, y.index, new(x.width, x.selected), Activation.SILU))
        elif kind == "linear":
            outs = tuple(
                new(width, x.selected)
                for width in draw(st.lists(st.sampled_from([4, 8]), min_size=1, max_size=3))
            )
            ops.append(Linear(x.index, (0,) * len(outs), outs, (None,) * len(outs)))
        elif kind == "rope":
            ops.append(Rope(x.index, 1, x.width, x.width, 1e4, RopeStyle.HALF))
        elif not x.selected:
            ops.append(Select(x.index, new(x.width, True)))
    return ops, values


def as_tuple(numbers: int | tuple[int, ...]) -> tuple[int, ...]:
    return numbers if isinstance(numbers, tuple) else (numbers,)


def run(ops: list[Op], kept: dict[int, Any]) -> list[tuple[Any, ...]]:
    """What each op reads when `kept` holds values by number; a value is the history that led to it."""
    log = []
    for step, op in enumerate(ops):
        operands = OPERANDS[type(op)]
        read = tuple(kept[getattr(op, field)] for field in operands.reads)
        log.append(read)
        written = [number for field in operands.writes for number in as_tuple(getattr(op, field))]
        for i, number in enumerate(written):
            kept[number] = (step, i)
        if isinstance(op, Rope):
            kept[op.x] = (step, "turned", *read)
    return log


@given(graphs())
def test_every_op_reads_what_it_would_without_sharing(graph: tuple[list[Op], list[Value]]) -> None:
    ops, values = graph
    placed, buffers = place_values(ops, values)
    assert run(list(placed), {}) == run(ops, {})
    assert len(buffers) <= len(values)


@given(graphs())
def test_buffers_have_the_shape_of_their_values_and_are_shared_only_where_allowed(
    graph: tuple[list[Op], list[Value]],
) -> None:
    ops, values = graph
    placed, buffers = place_values(ops, values)
    for op, new in zip(ops, placed, strict=True):
        operands = OPERANDS[type(op)]
        for field in operands.reads + operands.writes:
            for value, buffer in zip(
                as_tuple(getattr(op, field)), as_tuple(getattr(new, field)), strict=True
            ):
                wanted = values[value].width, values[value].selected
                assert (buffers[buffer].width, buffers[buffer].selected) == wanted
        if isinstance(new, Linear):
            assert len(set(new.outs)) == len(new.outs)
            assert new.x not in new.outs
        if isinstance(new, Gated) and new.gate != new.up:
            assert new.out != new.up


def test_a_chain_takes_two_buffers() -> None:
    values = [Value(i, str(i), 4) for i in range(10)]
    ops: list[Op] = [Embed(0, 0), *(Linear(i, (0,), (i + 1,), (None,)) for i in range(9))]
    assert len(place_values(ops, values)[1]) == 2


def test_a_residual_is_added_in_place() -> None:
    values = [Value(i, str(i), 4) for i in range(3)]
    ops: list[Op] = [Embed(0, 0), Linear(0, (0,), (1,), (None,)), Add(0, 1, 2), RmsNorm(2, 0, 0, 1e-5)]
    placed, _ = place_values(ops[:3], values)
    add = placed[2]
    assert isinstance(add, Add)
    assert add.out == add.x


@pytest.mark.parametrize("op", OPERANDS)
def test_operands_name_fields_of_their_op(op: type) -> None:
    operands = OPERANDS[op]
    assert set(operands.reads + operands.writes) <= set(op.__dataclass_fields__)
    assert set(operands.reuses) <= set(operands.reads)
