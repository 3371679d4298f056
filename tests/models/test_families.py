"""Families that no real model here belongs to: random ones against a dense float64 twin."""

import functools
from collections.abc import Iterator
from typing import Any

import dense
import numpy as np
import pytest
from memory_source import MemorySource
from running import program_logprobs, random_tokens

from batches import Part, blocks_for, make_batch, step
from corral.errors import UnsupportedModel
from corral.models.program import Program
from corral.models.table import FAMILIES, build_program, find_family

VOCAB, HIDDEN, FFN, HEADS, KV_HEADS, HEAD = 320, 64, 96, 4, 2, 24
TOKENS = random_tokens(50, VOCAB)
CLOSE = {"rtol": 0, "atol": 2e-4}
SIZES = dense.Sizes(layers=3, heads=HEADS, kv_heads=KV_HEADS, head_dim=HEAD, eps=1e-6, theta=5e5)
FIELDS: dict[str, Any] = {
    "block_count": SIZES.layers,
    "context_length": 256,
    "embedding_length": HIDDEN,
    "feed_forward_length": FFN,
    "vocab_size": VOCAB,
    "attention.head_count": HEADS,
    "attention.head_count_kv": KV_HEADS,
    "attention.key_length": HEAD,
    "attention.value_length": HEAD,
    "attention.layer_norm_rms_epsilon": SIZES.eps,
    "rope.freq_base": SIZES.theta,
}
Q, KV = HEADS * HEAD, KV_HEADS * HEAD
LAYER = {
    **{"attn_norm.weight": (HIDDEN,), "ffn_norm.weight": (HIDDEN,), "attn_output.weight": (HIDDEN, Q)},
    **{"attn_q.weight": (Q, HIDDEN), "attn_k.weight": (KV, HIDDEN), "attn_v.weight": (KV, HIDDEN)},
    **{"ffn_gate.weight": (FFN, HIDDEN), "ffn_up.weight": (FFN, HIDDEN), "ffn_down.weight": (HIDDEN, FFN)},
}
BIASES = {"attn_q.bias": (Q,), "attn_k.bias": (KV,), "attn_v.bias": (KV,)}
QK_NORMS = {"attn_q_norm.weight": (HEAD,), "attn_k_norm.weight": (HEAD,)}
SANDWICH = {"post_attention_norm.weight": (HIDDEN,), "post_ffw_norm.weight": (HIDDEN,)}


def random_weights(**layer: tuple[int, ...]) -> dict[str, np.ndarray]:
    """A tied model of these tensors in each layer."""
    rng = np.random.default_rng(7)
    shapes = {"token_embd.weight": (VOCAB, HIDDEN), "output_norm.weight": (HIDDEN,)}
    for number in range(SIZES.layers):
        shapes |= {f"blk.{number}.{name}": shape for name, shape in layer.items()}
    return {
        name: rng.normal(1.0 if "norm" in name else 0.0, 0.3 if len(shape) == 1 else shape[1] ** -0.5, shape)
        for name, shape in shapes.items()
    }


def rounded(weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: array.astype(np.float32).astype(np.float64) for name, array in weights.items()}


@pytest.fixture(params=["qwen2", "qwen3", "gemma2"])
def family(request: pytest.FixtureRequest) -> Iterator[tuple[Program, np.ndarray]]:
    """A Program of the family, and the log-probs of TOKENS by its twin."""
    name, fields, rotate = request.param, dict(FIELDS), dense.rotate_half
    if name == "gemma2":
        weights = random_weights(**LAYER, **SANDWICH)
        fields |= {"attention.sliding_window": 20, "attention.query_size": 17}
        fields |= {"attn_logit_softcapping": 1.5, "final_logit_softcapping": 2.0}
        wanted = dense.gemma2(rounded(weights), SIZES, TOKENS, 20, 17, (1.5, 2.0))
    else:
        weights = random_weights(**LAYER, **(BIASES if name == "qwen2" else QK_NORMS))
        wanted = dense.llama(rounded(weights), SIZES, TOKENS, rotate)
    yield build_program(MemorySource(name, fields, weights)), wanted


def test_forward_agrees_with_a_dense_float64_twin(family: tuple[Program, np.ndarray]) -> None:
    program, wanted = family
    np.testing.assert_allclose(program_logprobs(program, TOKENS), wanted, **CLOSE)


def test_native_agrees_through_prefill_chunks_and_decode(family: tuple[Program, np.ndarray]) -> None:
    pytest.importorskip("corral._native", reason="the native module is not built", exc_type=ImportError)
    from corral.executors.native import NativeExecutor

    program, wanted = family
    groups, blocks = len(program.cache.groups), blocks_for(len(TOKENS))
    native = NativeExecutor(
        program, num_blocks=groups * len(blocks), max_tokens=64, max_sequences=1, threads=2
    )
    targets, found = [*TOKENS[1:], 0], []
    for start, stop in [(0, 31), (31, 49), (49, 50)]:
        part = Part(TOKENS[start:stop], blocks, start)
        target = np.array(targets[start:stop], np.int32)
        found.append(step(native, make_batch([part], groups=groups, target=target)).logprobs)
    chosen = wanted[np.arange(len(TOKENS)), targets]
    np.testing.assert_allclose(np.concatenate(found), chosen, rtol=0, atol=2e-3)


def test_published_norms_without_their_one_have_it_added() -> None:
    weights = random_weights(**LAYER, **SANDWICH)
    fields = FIELDS | {"norm.offset": 1.0}
    less = {name: array - 1.0 if "norm" in name else array for name, array in weights.items()}
    found = program_logprobs(build_program(MemorySource("gemma2", fields, less)), TOKENS)
    wanted = program_logprobs(build_program(MemorySource("gemma2", FIELDS, weights)), TOKENS)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-4)


def test_llama_rotates_halves_in_its_authors_order() -> None:
    weights = random_weights(**LAYER)
    fields = FIELDS | {"rope.interleaved": False}
    found = program_logprobs(build_program(MemorySource("llama", fields, weights)), TOKENS)
    twin = functools.partial(dense.llama, rounded(weights), SIZES, TOKENS)
    np.testing.assert_allclose(found, twin(dense.rotate_half), **CLOSE)
    assert np.abs(found - twin(dense.rotate_interleaved)).max() > 0.01


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_is_found_by_its_authors_names_too(name: str) -> None:
    family = FAMILIES[name]
    assert family.published
    assert all(find_family(architecture) is family for architecture in (name, *family.published))


@pytest.mark.parametrize("name", ["bert", "mamba2", "", "LLAMA", "BertForMaskedLM"])
def test_other_architectures_are_refused_by_name_whatever_their_fields(name: str) -> None:
    with pytest.raises(UnsupportedModel, match=f"'{name}'.*{', '.join(sorted(FAMILIES))}"):
        build_program(MemorySource(name, {"block_count": "none"}))


@pytest.mark.parametrize(
    "name", ["rope.dimension_sections", "attention.scale", "expert_shared_count", "attention.causal"]
)
def test_fields_that_would_change_the_answer_are_refused_by_name(name: str) -> None:
    source = MemorySource("qwen3", FIELDS | {name: 1}, random_weights(**LAYER, **QK_NORMS))
    with pytest.raises(UnsupportedModel, match=name):
        build_program(source)


def test_a_stablelm_of_one_norm_a_layer_is_refused() -> None:
    fields = FIELDS | {"attention.layer_norm_epsilon": 1e-5, "use_parallel_residual": True}
    with pytest.raises(UnsupportedModel, match="use_parallel_residual"):
        build_program(MemorySource("stablelm", fields, random_weights(**{"attn_norm.weight": (HIDDEN,)})))


@pytest.mark.parametrize("name", ["qwen2", "qwen3", "llama", "gemma2", "gemma3"])
def test_the_activation_that_a_source_names_is_used(name: str) -> None:
    norms = SANDWICH | QK_NORMS if name == "gemma3" else SANDWICH if name == "gemma2" else {}
    weights = random_weights(**LAYER, **(QK_NORMS if name == "qwen3" else norms))

    def logprobs(**fields: str) -> np.ndarray:
        return program_logprobs(build_program(MemorySource(name, FIELDS | fields, weights)), TOKENS)

    silu, gelu = (logprobs(**{"feed_forward.activation": each}) for each in ("silu", "gelu_pytorch_tanh"))
    assert np.abs(silu - gelu).max() > 0.01
    np.testing.assert_array_equal(logprobs(), gelu if name.startswith("gemma") else silu)
    with pytest.raises(UnsupportedModel, match=r"feed_forward\.activation.*relu2.*silu"):
        logprobs(**{"feed_forward.activation": "relu2"})
