"""Tensors of a file as QTensors."""

import re

import gguf
import numpy as np
import pytest

import gguf_files
from corral.errors import CorruptModel, UnsupportedModel
from corral.weights.gguf import open_gguf
from corral.weights.groups import Groups
from corral.weights.qtensor import QTensor
from corral.weights.tensors import load_tensor


def test_vector_becomes_one_row(tmp_path) -> None:
    values = np.arange(5, dtype=np.float32)
    with open_gguf(gguf_files.write_gguf(tmp_path / "m.gguf", {}, {"norm": values})) as file:
        assert file.tensors["norm"].shape == (5,)
        norm = load_tensor(file, "norm")
        assert (norm.shape, norm.bits, norm.is_float) == ((1, 5), 32, True)
        np.testing.assert_array_equal(norm.dequantize(), values[None])


def test_missing_tensor_is_named(tmp_path) -> None:
    with (
        open_gguf(gguf_files.write_gguf(tmp_path / "m.gguf", {})) as file,
        pytest.raises(CorruptModel, match=r"m\.gguf.*'output\.weight' is missing"),
    ):
        load_tensor(file, "output.weight")


def test_type_that_cannot_be_run_is_named_with_those_that_can(tmp_path) -> None:
    raw = np.zeros((2, 66), np.uint8)
    path = gguf_files.write_gguf(tmp_path / "m.gguf", {}, {"blk.0.w": ("IQ2_XXS", raw)})
    with (
        open_gguf(path) as file,
        pytest.raises(UnsupportedModel, match=r"'blk\.0\.w' has type IQ2_XXS.*can run .*Q4_K"),
    ):
        load_tensor(file, "blk.0.w")


@pytest.mark.parametrize("shape", [(2, 1, 3, 4), (5000, 1, 1)])
def test_other_shapes_than_vectors_matrices_and_stacks_are_refused(tmp_path, shape: tuple[int, ...]) -> None:
    path = gguf_files.write_gguf(tmp_path / "m.gguf", {}, {"w": np.zeros(shape, np.float32)})
    with (
        open_gguf(path) as file,
        pytest.raises(UnsupportedModel, match=re.escape(f"'w' of shape {list(shape)}")),
    ):
        load_tensor(file, "w")


def q4_k_stack(tmp_path, experts: int, rows: int, cols: int) -> tuple[QTensor, np.ndarray]:
    """A stack of random matrices in a file, and its weights [E, rows, cols]."""
    kind, raw = gguf_files.random_matrix(np.random.default_rng(0), "Q4_K", experts * rows, cols, 1.0)
    stack = raw.reshape(experts, rows, -1)
    with open_gguf(gguf_files.write_gguf(tmp_path / "m.gguf", {}, {"w": (kind, stack)})) as file:
        weights = gguf.quants.dequantize(raw, gguf.GGMLQuantizationType[kind])
        return load_tensor(file, "w"), weights.reshape(experts, rows, cols)


def test_three_dimensions_become_a_stack_of_experts(tmp_path) -> None:
    stack, weights = q4_k_stack(tmp_path, 3, 5, 512)
    assert (stack.shape, stack.experts, stack.nbytes) == ((5, 512), 3, 3 * 5 * 2 * 144)
    np.testing.assert_array_equal(stack.dequantize(), weights)
    last = stack.expert(2)
    assert (last.shape, last.experts) == ((5, 512), 1)
    np.testing.assert_array_equal(last.dequantize(), weights[2])


def test_slices_have_the_weights_of_their_rows_and_columns_without_a_copy(tmp_path) -> None:
    stack, weights = q4_k_stack(tmp_path, 2, 6, 768)
    cut = stack.rows_between(1, 5).columns_between(256, 768)
    assert (cut.shape, cut.experts, cut.nbytes) == ((4, 512), 2, 2 * 4 * 2 * 144)
    assert all(np.shares_memory(part, whole) for part, whole in zip(cut.parts, stack.parts, strict=True))
    np.testing.assert_array_equal(cut.dequantize(), weights[:, 1:5, 256:])
    np.testing.assert_array_equal(cut.expert(1).dequantize(2, 3), weights[1, 3:4, 256:])


@pytest.mark.parametrize("edges", [(-1, 3), (2, 2), (3, 2), (0, 7)])
def test_rows_that_are_not_there_are_refused(tmp_path, edges: tuple[int, int]) -> None:
    stack, _ = q4_k_stack(tmp_path, 1, 6, 256)
    with pytest.raises(ValueError, match="'w' has 6 rows"):
        stack.rows_between(*edges)


@pytest.mark.parametrize("edges", [(-256, 256), (0, 1024), (256, 256), (512, 256), (0, 32), (128, 768)])
def test_columns_that_are_not_whole_blocks_are_refused(tmp_path, edges: tuple[int, int]) -> None:
    stack, _ = q4_k_stack(tmp_path, 1, 6, 768)
    with pytest.raises(ValueError, match=r"'w' has (768 columns|blocks of 256)"):
        stack.columns_between(*edges)


def test_tensor_outlives_the_closed_file(tmp_path) -> None:
    values = np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32)
    file = open_gguf(gguf_files.write_gguf(tmp_path / "m.gguf", {}, {"w": values}))
    matrix = load_tensor(file, "w")
    file.close()
    np.testing.assert_array_equal(matrix.dequantize(), values)


@pytest.mark.parametrize(
    ("start", "stop", "multiple"), [(0, None, 8), (8, 2000, 16), (0, 0, 8), (1999, None, 1)]
)
def test_ranges_cover_the_rows_once_in_multiples(tmp_path, start, stop, multiple) -> None:
    values = np.zeros((2001, 256), np.float32)
    with open_gguf(gguf_files.write_gguf(tmp_path / "m.gguf", {}, {"w": values})) as file:
        ranges = list(load_tensor(file, "w").ranges(start, stop, multiple))
    assert [row for first, end in ranges for row in range(first, end)] == list(range(2001))[start:stop]
    assert all((end - first) % multiple == 0 for first, end in ranges[:-1])
    assert all((end - first) * 1024 <= 256 << 10 for first, end in ranges)


def test_dequantize_of_many_ranges_equals_decoding_at_once(tmp_path) -> None:
    rng = np.random.default_rng(0)
    tensor = gguf_files.random_matrix(rng, "Q4_K", 3001, 512, 1.0)
    with open_gguf(gguf_files.write_gguf(tmp_path / "m.gguf", {}, {"w": tensor})) as file:
        matrix = load_tensor(file, "w")
        assert len(list(matrix.ranges())) > 2
        groups = matrix.decode()
        assert isinstance(groups, Groups)
        np.testing.assert_array_equal(matrix.dequantize(), groups.dequantize())
        np.testing.assert_array_equal(matrix.dequantize(5, -3), groups.dequantize()[5:-3])


def test_release_keeps_tensors_readable(tmp_path) -> None:
    values = np.random.default_rng(0).normal(size=(300, 100)).astype(np.float32)
    with open_gguf(gguf_files.write_gguf(tmp_path / "m.gguf", {}, {"a": values, "b": -values})) as file:
        first = load_tensor(file, "a")
        assert first.dequantize().any()
        file.release("a")
        file.release("b")
        np.testing.assert_array_equal(first.dequantize(), values)
        np.testing.assert_array_equal(load_tensor(file, "b").dequantize(), -values)


def compare_with_gguf_package(path) -> None:
    """The first, the last and one in ten tensors, some rows of each."""
    reader = gguf.GGUFReader(path)
    with open_gguf(path) as file:
        assert [
            (t.name, tuple(int(n) for n in reversed(t.shape)), t.tensor_type.name) for t in reader.tensors
        ] == [(info.name, info.shape, info.type) for info in file.tensors.values()]
        for tensor in [*reader.tensors[:12], *reader.tensors[12::10], reader.tensors[-1]]:
            ours = load_tensor(file, tensor.name)
            data = tensor.data.reshape(ours.shape[0], -1)
            for start in {0, ours.shape[0] // 2, max(ours.shape[0] - 8, 0)}:
                theirs = gguf.quants.dequantize(data[start : start + 8], tensor.tensor_type)
                np.testing.assert_array_equal(ours.dequantize(start, start + 8), theirs)
        for key, field in reader.fields.items():
            if not key.startswith("GGUF."):
                value = file.metadata[key]
                assert (value if isinstance(value, str | int | float) else list(value)) == field.contents(), (
                    key
                )


@pytest.mark.model
def test_smollm2_equals_the_gguf_package(smollm2_path) -> None:
    compare_with_gguf_package(smollm2_path)


@pytest.mark.model
def test_gemma3_equals_the_gguf_package(gemma3_path) -> None:
    compare_with_gguf_package(gemma3_path)
