from pathlib import Path

import numpy as np
import pytest
from checkpoint import rewrite

from corral.errors import CorruptModel, UnsupportedModel, UserError
from corral.models.program import Program
from corral.models.table import build_program
from corral.weights.gguf import open_gguf
from corral.weights.gguf_source import GGUFSource
from gguf_files import encode, tiny_llama


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return tiny_llama(tmp_path / "m.gguf")


def build(path: Path) -> Program:
    with open_gguf(path) as file:
        return build_program(GGUFSource(file))


def test_a_missing_tensor_is_named(checkpoint: Path) -> None:
    with pytest.raises(CorruptModel, match=r"blk\.1\.ffn_up\.weight"):
        build(rewrite(checkpoint, {"blk.1.ffn_up.weight": None}))


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("token_embd.weight", (300, 64)),
        ("blk.0.attn_q.weight", (64, 32)),
        ("blk.0.attn_k.weight", (64, 64)),
        ("blk.1.ffn_down.weight", (128, 64)),
        ("blk.0.attn_norm.weight", (32,)),
        ("blk.0.attn_norm.weight", (1, 64)),
        ("output_norm.weight", (65,)),
        ("rope_freqs.weight", (9,)),
        ("blk.0.attn_q.bias", (32,)),
        ("blk.0.attn_q.weight", (2, 32, 64)),
    ],
)
def test_a_misshapen_tensor_is_named_with_both_shapes(
    checkpoint: Path, name: str, shape: tuple[int, ...]
) -> None:
    with pytest.raises(CorruptModel) as error:
        build(rewrite(checkpoint, {name: np.zeros(shape, np.float32)}))
    assert name in str(error.value)
    assert " x ".join(map(str, shape)) in str(error.value)


def test_tensors_that_nothing_uses_are_named(checkpoint: Path) -> None:
    extra = {f"blk.0.attn_extra_{i}.weight": np.zeros((4, 64), np.float32) for i in range(7)}
    with pytest.raises(UnsupportedModel, match=r"blk\.0\.attn_extra_0\.weight.*and 2 more"):
        build(rewrite(checkpoint, extra))


def test_an_image_encoder_in_the_file_does_no_harm(checkpoint: Path) -> None:
    plain = build(checkpoint)
    image = {
        "v.blk.0.attn_q.weight": np.zeros((8, 8), np.float32),
        "mm.0.weight": np.zeros((8, 8), np.float32),
    }
    assert build(rewrite(checkpoint, image)).ops == plain.ops


def test_a_quantised_norm_is_refused_by_name(checkpoint: Path) -> None:
    kind, raw = encode(np.ones((1, 64), np.float32), "Q8_0")
    with pytest.raises(UserError, match=r"blk\.0\.attn_norm\.weight"):
        build(rewrite(checkpoint, {"blk.0.attn_norm.weight": (kind, raw[0])}))


def test_an_unsupported_architecture_names_the_supported_ones(checkpoint: Path) -> None:
    with pytest.raises(UnsupportedModel, match=r"'mamba'.*gemma3, llama"):
        build(rewrite(checkpoint, metadata={"general.architecture": "mamba"}))


def test_dimensions_that_the_file_does_not_hold_are_refused_without_building(checkpoint: Path) -> None:
    absurd = {
        "llama.embedding_length": 1 << 16,
        "llama.attention.head_count": 1024,
        "llama.block_count": 1024,
    }
    with pytest.raises(CorruptModel, match="token_embd"):
        build(rewrite(checkpoint, metadata=absurd))
