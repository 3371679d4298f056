"""Early Mixtral files, which have a tensor for each expert."""

from pathlib import Path

import numpy as np
import pytest

from corral.errors import CorruptModel
from corral.weights.gguf_source import GGUFSource
from gguf_files import encode, write_gguf


def write_experts(path: Path, **tensors: np.ndarray) -> Path:
    metadata = {"general.architecture": "llama", "tokenizer.ggml.tokens": ["a"]}
    names = {"blk.2.ffn_up.weight": np.ones((4, 3), np.float32)}
    return write_gguf(path / "m.gguf", metadata, names | {f"blk.1.{key}": t for key, t in tensors.items()})


def experts(count: int, rows: int = 3) -> dict[str, np.ndarray]:
    return {f"ffn_gate.{e}.weight": np.full((rows, 32), e, np.float32) for e in range(count)}


def test_tensors_of_experts_are_one_stack(tmp_path: Path) -> None:
    with GGUFSource.open(write_experts(tmp_path, **experts(11))) as source:
        assert set(source.tensors) == {"blk.2.ffn_up.weight", "blk.1.ffn_gate_exps.weight"}
        info = source.tensors["blk.1.ffn_gate_exps.weight"]
        assert (info.shape, info.type, info.nbytes) == ((11, 3, 32), "F32", 11 * 3 * 32 * 4)
        stack = source.tensor(info.name)
        assert (stack.experts, stack.shape) == (11, (3, 32))
        np.testing.assert_array_equal(stack.dequantize()[:, 0, 0], range(11))
        source.release(info.name)


def test_a_missing_expert_is_named(tmp_path: Path) -> None:
    tensors = experts(3)
    del tensors["ffn_gate.1.weight"]
    with pytest.raises(CorruptModel, match=r"blk\.1\.ffn_gate_exps.*lacks expert 1"):
        GGUFSource.open(write_experts(tmp_path, **tensors))


@pytest.mark.parametrize("other", [np.ones((4, 32), np.float32), encode(np.ones((3, 32)), "Q8_0")])
def test_experts_of_different_shapes_or_types_are_refused(tmp_path: Path, other: np.ndarray) -> None:
    with pytest.raises(CorruptModel, match=r"blk\.1\.ffn_gate_exps.*differ"):
        GGUFSource.open(write_experts(tmp_path, **(experts(3) | {"ffn_gate.1.weight": other})))
