from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corral.models.graph import Graph, Value
from corral.models.ops import (
    READS,
    VALUES,
    Activation,
    Add,
    Embed,
    Gated,
    Linear,
    Op,
    RmsNorm,
    Role,
    Rope,
    RopeStyle,
    Select,
    numbers_in,
)
from corral.models.placement import place
from corral.models.program import Buffer


def graph_of(ops: list[Op], values: list[Value]) -> Graph:
    return Graph(tuple(values), (), (), tuple(ops), vocab_size=1, context_length=1)


@st.composite
def graphs(draw: st.DrawFn) -> Graph:
    """Random ops, each over values that exist; widths and selection vary, and some values are views."""
    values = [Value(0, "v0", 4)]
    ops: list[Op] = [Embed(0, 0)]

    def new(width: int, selected: bool, base: int | None = None, start: int = 0) -> int:
        values.append(Value(len(values), f"v{len(values)}", width, selected, base, start))
        return values[-1].index

    def pick(like: Value | None = None) -> Value:
        same = [v for v in values if like is None or (v.width, v.selected) == (like.width, like.selected)]
        return draw(st.sampled_from(same))

    for _ in range(draw(st.integers(1, 25))):
        x = pick()
        y = pick(like=x)
        kind = draw(st.sampled_from(["norm", "add", "gated", "linear", "rope", "select", "view"]))
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
            ops.append(Rope(x.index, new(x.width, x.selected), 1, (0.5,), RopeStyle.HALF))
        elif kind == "view" and x.width == 8:
            base = x.index if x.base is None else x.base
            new(4, x.selected, base, x.start + draw(st.sampled_from([0, 2, 4])))
        elif kind == "select" and not x.selected:
            ops.append(Select(x.index, new(x.width, True)))
    return graph_of(ops, values)


Cells = list[Any]  # what was last written to each column


def columns_of(item: Value | Buffer, index: int) -> tuple[int, range]:
    base = index if item.base is None else item.base
    return base, range(item.start, item.start + item.width)


def run(ops: tuple[Op, ...], items: tuple[Value, ...] | tuple[Buffer, ...]) -> list[tuple[Any, ...]]:
    """What each op reads, column by column: which op wrote it, in which column of which result."""
    cells: dict[int, Cells] = {i: [None] * item.width for i, item in enumerate(items)}
    log = []
    for step, op in enumerate(ops):
        read = []
        for number in numbers_in(op, *READS):
            base, columns = columns_of(items[number], number)
            read.append(tuple(cells[base][column] for column in columns))
        log.append(tuple(read))
        for i, number in enumerate(numbers_in(op, Role.WRITTEN)):
            base, columns = columns_of(items[number], number)
            for at, column in enumerate(columns):
                cells[base][column] = (step, i, at)
    return log


@given(graphs())
def test_every_op_reads_what_it_would_without_sharing(graph: Graph) -> None:
    program = place(graph)
    assert run(program.ops, program.buffers) == run(graph.ops, graph.values)
    own = [buffer for buffer in program.buffers if buffer.base is None]
    assert len(own) <= sum(value.base is None for value in graph.values)


@given(graphs())
def test_buffers_have_the_shape_of_their_values_and_are_shared_only_where_allowed(graph: Graph) -> None:
    program = place(graph)

    def columns(number: int) -> set[tuple[int, int]]:
        base, own = columns_of(program.buffers[number], number)
        return {(base, column) for column in own}

    for op, new in zip(graph.ops, program.ops, strict=True):
        numbers = zip(numbers_in(op, *VALUES), numbers_in(new, *VALUES), strict=True)
        for value, buffer in numbers:
            wanted = graph.values[value].width, graph.values[value].selected
            assert (program.buffers[buffer].width, program.buffers[buffer].selected) == wanted
        reusable = [columns(number) for number in numbers_in(new, Role.REUSABLE)]
        read = [columns(number) for number in numbers_in(new, *READS)]
        written = [columns(number) for number in numbers_in(new, Role.WRITTEN)]
        for i, cells in enumerate(written):
            assert not any(cells & other for other in written[:i])
            assert all(cells in reusable for other in read if cells & other)


def test_a_chain_takes_two_buffers() -> None:
    values = [Value(i, str(i), 4) for i in range(10)]
    ops: list[Op] = [Embed(0, 0), *(Linear(i, (0,), (i + 1,), (None,)) for i in range(9))]
    assert len(place(graph_of(ops, values)).buffers) == 2


def test_a_residual_is_added_in_place() -> None:
    values = [Value(i, str(i), 4) for i in range(3)]
    ops: list[Op] = [Embed(0, 0), Linear(0, (0,), (1,), (None,)), Add(0, 1, 2)]
    add = place(graph_of(ops, values)).ops[2]
    assert isinstance(add, Add)
    assert add.out == add.x


def test_parts_of_one_product_rotate_in_place() -> None:
    values = [
        Value(0, "x", 8),
        Value(1, "qkv", 24),
        Value(2, "q", 16, base=1),
        Value(3, "k", 8, base=1, start=16),
    ]
    values += [Value(4, "q", 16), Value(5, "k", 8)]
    ops: list[Op] = [Embed(0, 0), Linear(0, (0,), (1,), (None,))]
    ops += [Rope(x, x + 2, 1, (0.5,), RopeStyle.HALF) for x in (2, 3)] + [Add(4, 4, 4)]
    program = place(graph_of(ops, values))
    assert [buffer.width for buffer in program.buffers if buffer.base is None] == [8, 24]
    for op, start in zip(program.ops[2:4], (0, 16), strict=True):
        assert isinstance(op, Rope)
        assert op.out == op.x
        assert program.buffers[op.x].start == start


@pytest.mark.parametrize("op", Op.__subclasses__())
def test_every_op_writes_reads_or_both(op: type[Op]) -> None:
    assert set(op.roles) <= set(op.__dataclass_fields__)
    assert set(op.roles.values()) & {Role.WRITTEN, *READS}
