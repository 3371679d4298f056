"""The files that scripts/model_variants.py writes for benchmarks."""

from pathlib import Path

import numpy as np
import pytest

import model_variants
from batches import Part, blocks_for, make_batch, step
from corral.executors.reference import ReferenceExecutor
from corral.models.table import build_program
from corral.text.tokenizer import load_tokenizer
from corral.weights.gguf import open_gguf
from corral.weights.gguf_source import GGUFSource
from corral.weights.gguf_text import read_text
from corral.weights.tensors import load_tensor
from gguf_files import tiny_llama


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("source") / "tiny.gguf")


def test_requantise_keeps_weights_within_a_step_and_the_vocabulary(source, tmp_path):
    model_variants.requantise(source, tmp_path / "q4_0.gguf")
    before, after = open_gguf(source), open_gguf(tmp_path / "q4_0.gguf")
    assert list(after.tensors) == list(before.tensors)
    changed = 0
    for name in before.tensors:
        old, new = load_tensor(before, name), load_tensor(after, name)
        assert (new.type_name == "Q4_0") == (old.type_name == "Q4_1")
        weights = old.dequantize()
        step = np.abs(weights).max() / 7 if old.type_name == "Q4_1" else 0
        assert np.abs(new.dequantize() - weights).max() <= step
        changed += old.type_name == "Q4_1"
    assert changed > 0
    text = "the sheep and the horses"
    tokenizers = [load_tokenizer(read_text(file.metadata)) for file in (before, after)]
    encode = [tokenizer.encode(text, special=False, add_bos=False) for tokenizer in tokenizers]
    assert encode[0] == encode[1]


def test_random_llama_has_the_mix_and_finite_logits(source, tmp_path):
    shape = model_variants.Shape(layers=8, hidden=256, ffn=512, heads=4, kv_heads=2, context=128)
    model_variants.random_llama(source, tmp_path / "random.gguf", shape)
    gguf = open_gguf(tmp_path / "random.gguf")
    kinds = {name: load_tensor(gguf, name).type_name for name in gguf.tensors}
    assert kinds["blk.0.ffn_down.weight"] == kinds["blk.7.attn_v.weight"] == "Q6_K"
    assert kinds["blk.1.ffn_down.weight"] == kinds["blk.3.attn_q.weight"] == "Q4_K"
    weights = load_tensor(gguf, "blk.1.ffn_down.weight").dequantize()
    assert 0.015 < weights.std() < 0.025 and abs(weights.mean()) < 0.002
    rich = load_tensor(gguf, "blk.0.ffn_down.weight").dequantize()
    assert 0.015 < rich.std() < 0.025 and abs(rich.mean()) < 0.002
    assert_finite_logits(tmp_path / "random.gguf")


@pytest.mark.parametrize("name", ["q2_k", "q3_k", "iq4_nl", "iq4_xs"])
def test_random_llama_of_one_type_has_weights_like_those_of_the_mix(source, tmp_path, name: str):
    kind = model_variants.SHAPES[name].kind
    shape = model_variants.Shape(layers=8, hidden=256, ffn=512, heads=4, kv_heads=2, context=128, kind=kind)
    model_variants.random_llama(source, tmp_path / "random.gguf", shape)
    with open_gguf(tmp_path / "random.gguf") as file:
        tensor = load_tensor(file, "blk.0.ffn_down.weight")
        assert tensor.type_name == name.upper()
        weights = tensor.dequantize()
    assert 0.015 < weights.std() < 0.025 and abs(weights.mean()) < 0.002
    assert_finite_logits(tmp_path / "random.gguf")


def test_random_experts_are_stacks_of_such_matrices(source, tmp_path):
    shape = model_variants.Shape(
        layers=8, hidden=256, ffn=256, heads=4, kv_heads=2, context=128, experts=4, used=2
    )
    model_variants.random_llama(source, tmp_path / "random.gguf", shape)
    with open_gguf(tmp_path / "random.gguf") as gguf:
        stack = load_tensor(gguf, "blk.0.ffn_down_exps.weight")
        assert (stack.experts, stack.shape, stack.type_name) == (4, (256, 256), "Q6_K")
    assert_finite_logits(tmp_path / "random.gguf")


def assert_finite_logits(path: Path) -> None:
    program = build_program(GGUFSource.open(path))
    executor = ReferenceExecutor(program, num_blocks=2, max_tokens=16)
    result = step(executor, make_batch([Part([1, 2, 3, 4], blocks_for(4), rows=[3])]))
    assert 0 <= result.tokens[0] < program.vocab_size
