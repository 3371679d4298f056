from pathlib import Path

import numpy as np
import pytest
from checkpoint import rewrite
from ranks import Ranks
from running import random_tokens

from batches import Part, blocks_for, make_batch, step
from corral.executors.reference import ReferenceExecutor
from corral.models.graph import Graph
from corral.models.ops import AllReduce, Attention, Experts, Linear
from corral.models.passes import narrow
from corral.models.placement import place
from corral.models.shard import shard
from corral.models.table import build_graph
from corral.weights.gguf_source import GGUFSource
from families import checkpoints
from families.gguf_twins import write_twin
from gguf_files import tiny_gemma3, tiny_llama

TOKENS = random_tokens(40, 300)


def check_ranks_agree(graph: Graph, world: int, tokens: list[int] = TOKENS) -> None:
    """A prompt in two chunks gives on every rank the logits of the whole graph."""
    whole = place(narrow(graph))
    ranks = [place(narrow(shard(graph, rank, world))) for rank in range(world)]
    groups, blocks = len(whole.cache.groups), blocks_for(len(tokens))
    sizes = {"num_blocks": groups * len(blocks), "max_tokens": len(tokens)}
    executor, together = ReferenceExecutor(whole, **sizes), Ranks(ranks, **sizes)
    for start, stop in [(0, 25), (25, len(tokens))]:
        batch = make_batch([Part(tokens[start:stop], blocks, start)], groups=groups)
        step(executor, batch)
        for logits in together.logits(batch):
            np.testing.assert_allclose(
                logits, executor.logits, rtol=0, atol=2e-4 * np.abs(executor.logits).max()
            )
            np.testing.assert_array_equal(logits.argmax(axis=1), executor.logits.argmax(axis=1))


def tiny(path: Path, **shape: object) -> Graph:
    return build_graph(GGUFSource.open(tiny_llama(path / "m.gguf", types=("F32",), **shape)))


@pytest.mark.parametrize(
    ("heads", "kv_heads", "world"), [(4, 2, 2), (4, 4, 4), (4, 2, 4), (4, 1, 2), (6, 3, 3)]
)
def test_ranks_add_up_to_the_whole(tmp_path: Path, heads: int, kv_heads: int, world: int) -> None:
    check_ranks_agree(tiny(tmp_path, heads=heads, kv_heads=kv_heads, hidden=16 * heads, ffn=192), world)


def test_ranks_add_up_with_norms_of_heads_and_windows(tmp_path: Path) -> None:
    path = tiny_gemma3(tmp_path / "m.gguf", types=("F32",), heads=4, kv_heads=2)
    check_ranks_agree(build_graph(GGUFSource.open(path)), 2)


def test_every_bias_is_added_once(tmp_path: Path) -> None:
    path = tiny_llama(tmp_path / "m.gguf", types=("F32",))
    rng = np.random.default_rng(1)
    widths = {"attn_q": 64, "attn_k": 32, "attn_v": 32, "attn_output": 64, "ffn_gate": 128, "ffn_down": 64}
    biases = {f"blk.1.{name}.bias": rng.normal(0, 1, width).astype("f4") for name, width in widths.items()}
    check_ranks_agree(build_graph(GGUFSource.open(rewrite(path, biases))), 2)


def test_quantised_matrices_are_cut_at_whole_blocks(tmp_path: Path) -> None:
    path = tiny_llama(tmp_path / "m.gguf", types=("Q4_1", "Q8_0"), ffn=128)
    check_ranks_agree(build_graph(GGUFSource.open(path)), 2)


@pytest.mark.model
def test_a_real_model_on_three_ranks_gives_the_logits_of_one(smollm2_path: Path) -> None:
    check_ranks_agree(build_graph(GGUFSource.open(smollm2_path)), 3, random_tokens(32, 49152))


def test_a_rank_holds_its_part_of_heads_matrices_and_cache(tmp_path: Path) -> None:
    graph = tiny(tmp_path)
    part = shard(graph, 1, 2)
    assert [layer.kv_heads for layer in part.kv_layers] == [1, 1]
    assert {op.heads for op in part.ops if isinstance(op, Attention)} == {2}
    shapes = [[part.weights[i].shape for i in op.weights] for op in part.ops if isinstance(op, Linear)]
    assert shapes == [[(32, 64), (16, 64), (16, 64)], [(64, 32)], [(64, 64), (64, 64)], [(64, 64)]] * 2
    assert sum(isinstance(op, AllReduce) for op in part.ops) == 4


def test_one_rank_is_the_graph_itself(tmp_path: Path) -> None:
    graph = tiny(tmp_path)
    alone = shard(graph, 0, 1)
    assert [op for op in alone.ops if not isinstance(op, AllReduce)] == list(graph.ops)


def mixtral(path: Path) -> Graph:
    return family(path, "mixtral", "llama")


def family(path: Path, name: str, architecture: str) -> Graph:
    case = checkpoints.read_case(name)
    weights = checkpoints.weights(case)
    return build_graph(GGUFSource.open(write_twin(path / "m.gguf", architecture, case["published"], weights)))


@pytest.mark.parametrize("world", [1, 2])
def test_ranks_with_some_experts_each_add_up_to_the_whole(tmp_path: Path, world: int) -> None:
    check_ranks_agree(mixtral(tmp_path), world, checkpoints.tokens(40))


@pytest.mark.parametrize("name", ["stablelm", "olmo2"])
def test_ranks_add_up_with_norms_that_need_whole_rows(tmp_path: Path, name: str) -> None:
    check_ranks_agree(family(tmp_path, name, name), 2, checkpoints.tokens(40))


def test_a_rank_has_its_experts_alone(tmp_path: Path) -> None:
    graph = mixtral(tmp_path)
    whole = next(op for op in graph.ops if isinstance(op, Experts))
    part = shard(graph, 1, 2)
    own = next(op for op in part.ops if isinstance(op, Experts))
    assert (own.first, part.weights[own.gate].experts) == (2, 2)
    np.testing.assert_array_equal(
        part.weights[own.down].dequantize(), graph.weights[whole.down].dequantize()[2:]
    )


@pytest.mark.parametrize(
    ("shape", "world", "problem"),
    [
        ({}, 3, "4 heads"),
        ({"heads": 6, "kv_heads": 3, "hidden": 96}, 2, "3 kv heads"),
        ({"ffn": 130}, 4, "130 columns"),
        ({"ffn": 96, "types": ("Q8_0",)}, 2, "ffn_down.*blocks of 32"),
    ],
)
def test_what_cannot_be_divided_is_refused(
    tmp_path: Path, shape: dict[str, object], world: int, problem: str
) -> None:
    shape = {"types": ("F32",), **shape}
    graph = build_graph(GGUFSource.open(tiny_llama(tmp_path / "m.gguf", **shape)))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=problem):
        shard(graph, 0, world)
