from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from memory_source import MemorySource
from running import random_tokens

from batches import Part, blocks_for, make_batch, step
from corral.executors.reference import ReferenceExecutor
from corral.models.builder import GraphBuilder
from corral.models.cache import KVLayer
from corral.models.graph import Graph
from corral.models.ops import Activation, Attention, Embed, Head, Input, KVWrite, Linear, Op, Output, Select
from corral.models.passes import cut, narrow
from corral.models.placement import place
from corral.models.table import build_graph
from corral.weights.gguf_source import GGUFSource
from gguf_files import tiny_gemma3, tiny_llama

TOKENS = random_tokens(40, 300)
TINY = pytest.mark.parametrize("make", [tiny_llama, tiny_gemma3], ids=["llama", "gemma3"])


def kinds(graph: Graph) -> list[type[Op]]:
    return [type(op) for op in graph.ops]


@TINY
def test_the_last_layer_attends_for_the_wanted_rows_alone(
    make: Callable[[Path], Path], tmp_path: Path
) -> None:
    graph = narrow(build_graph(GGUFSource.open(make(tmp_path / "m.gguf"))))
    layers = len(graph.kv_layers)
    queries = [graph.values[op.q].selected for op in graph.ops if isinstance(op, Attention)]
    keys = [graph.values[op.k].selected for op in graph.ops if isinstance(op, KVWrite)]
    assert queries == [False] * (layers - 1) + [True]
    assert keys == [False] * layers
    assert kinds(graph).count(Select) == 2  # the residual, and what the queries are made of


@TINY
@pytest.mark.parametrize("rows", [[], [39], [3, 20, 39]])
def test_wanted_rows_alone_give_the_same_logits(
    make: Callable[[Path], Path], rows: list[int], tmp_path: Path
) -> None:
    graph = build_graph(GGUFSource.open(make(tmp_path / "m.gguf")))
    logits = []
    for program in (place(graph), place(narrow(graph))):
        groups, blocks = len(program.cache.groups), blocks_for(len(TOKENS))
        executor = ReferenceExecutor(program, num_blocks=groups * len(blocks), max_tokens=len(TOKENS))
        step(executor, make_batch([Part(TOKENS, blocks, rows=rows)], groups=groups))
        logits.append(executor.logits)
    np.testing.assert_allclose(logits[1], logits[0], rtol=0, atol=1e-4)


@pytest.mark.model
@pytest.mark.parametrize(("model", "ops", "buffers"), [("smollm2", 396, 12), ("gemma3", 312, 14)])
def test_real_models_take_no_more_ops_and_buffers_than_by_hand(
    model: str, ops: int, buffers: int, request: pytest.FixtureRequest
) -> None:
    program = place(narrow(build_graph(GGUFSource.open(request.getfixturevalue(f"{model}_path")))))
    assert len(program.ops) == ops
    assert len(program.buffers) <= buffers


def test_a_value_and_views_of_it_are_narrowed_where_each_may_be() -> None:
    """The queries among fused rows are selected before they attend; keys and values are not."""
    rng = np.random.default_rng(2)
    shapes = {"token_embd": (20, 16), "qkv": (24, 16), "up": (16, 8), "output": (20, 8)}
    arrays = {f"{name}.weight": rng.normal(0, 1, shape) for name, shape in shapes.items()}
    g = GraphBuilder(MemorySource("test", {}, arrays))
    qkv = g.linear(g.embed("token_embd", 20, 16), "qkv", 24)
    q, k, v = (g.view(qkv, start, 8) for start in (0, 8, 16))
    a = g.attention(q, k, v, KVLayer(1, 8, 8), 0.3)
    up = g.linear(a, "up", 16)
    gate, other = g.view(up, 0, 8), g.view(up, 8, 8)
    g.head(g.gated(gate, other, Activation.SILU), 20)
    graph = g.build(20, 64)
    narrowed = narrow(graph)
    wanted = [Embed, Linear, KVWrite, Select, Attention, Linear, *kinds(graph)[-3:-2], Head]
    assert kinds(narrowed) == wanted
    logits = []
    for program in (place(graph), place(narrowed)):
        executor = ReferenceExecutor(program, num_blocks=1, max_tokens=9)
        step(executor, make_batch([Part(range(9), [0], rows=[2, 8])]))
        logits.append(executor.logits)
    np.testing.assert_allclose(logits[1], logits[0], rtol=1e-5, atol=1e-5)


def test_what_wanted_rows_are_taken_of_stays_whole_for_others() -> None:
    rng = np.random.default_rng(2)
    shapes = {"token_embd": (20, 16), "q": (8, 16), "k": (8, 16), "v": (8, 16), "output": (20, 8)}
    arrays = {f"{name}.weight": rng.normal(0, 1, shape) for name, shape in shapes.items()}
    g = GraphBuilder(MemorySource("test", {}, arrays))
    x = g.embed("token_embd", 20, 16)
    q, k, v = (g.linear(x, name, 8) for name in "qkv")
    g.head(g.attention(q, k, v, KVLayer(1, 8, 8), 0.3), 20)
    graph = narrow(g.build(20, 64))
    linears = [op for op in graph.ops if isinstance(op, Linear)]
    assert [graph.values[op.x].selected for op in linears] == [True, False, False]
    assert [graph.values[op.outs[0]].selected for op in linears] == [True, False, False]


@TINY
@pytest.mark.parametrize("layers", [[1, -1], [1, 1, -1], [-1]])
def test_stages_hand_on_rows_that_give_the_same_logits(
    make: Callable[[Path], Path], layers: list[int], tmp_path: Path
) -> None:
    graph = build_graph(GGUFSource.open(make(tmp_path / "m.gguf", layers=4)))  # type: ignore[call-arg]
    layers = [*layers[:-1], 4 - sum(layers[:-1])]
    stages = [place(narrow(stage)) for stage in cut(graph, layers)]
    assert [len(stage.kv_layers) for stage in stages] == layers
    assert [isinstance(stage.ops[0], Input) for stage in stages] == [False] + [True] * (len(layers) - 1)
    assert [isinstance(stage.ops[-1], Output) for stage in stages] == [True] * (len(layers) - 1) + [False]

    def run(program, rows, inputs=None):
        groups, blocks = len(program.cache.groups), blocks_for(len(TOKENS))
        executor = ReferenceExecutor(program, num_blocks=groups * len(blocks), max_tokens=len(TOKENS))
        batch = make_batch([Part(TOKENS, blocks, rows=rows)], groups=groups)
        result = step(executor, batch if inputs is None else replace(batch, inputs=inputs))
        return executor.logits, result.vectors

    wanted, _ = run(place(graph), [5, 39])
    vectors = None
    for stage in stages[:-1]:
        _, vectors = run(stage, None, vectors)
    found, _ = run(stages[-1], [5, 39], vectors)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-4)


def test_stages_hold_their_own_weights_alone(tmp_path: Path) -> None:
    graph = build_graph(GGUFSource.open(tiny_llama(tmp_path / "m.gguf", layers=3, tied=False)))
    names = [{weight.name for weight in stage.weights} for stage in cut(graph, [2, 1])]
    assert names[0] | names[1] == {weight.name for weight in graph.weights}
    assert not names[0] & names[1]
    assert "token_embd.weight" in names[0]
    assert {"blk.2.attn_q.weight", "output.weight"} <= names[1]


@pytest.mark.parametrize("layers", [[], [1], [2, 1], [3, -1], [2, 0], [0, 2]])
def test_layers_that_do_not_add_up_are_refused(layers: list[int], tmp_path: Path) -> None:
    graph = build_graph(GGUFSource.open(tiny_llama(tmp_path / "m.gguf")))
    with pytest.raises(ValueError, match="2 layers"):
        cut(graph, layers)
