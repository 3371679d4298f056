"""Packing a file's blocks natively, against packing what weights/formats.py decodes: the same bits."""

import numpy as np
import pytest

from corral.weights.formats import FORMATS
from corral.weights.groups import Groups

native = pytest.importorskip("corral._native", reason="the native module is not built", exc_type=ImportError)

TYPES = ["Q4_0", "Q4_1", "Q4_K", "Q5_0", "Q5_1", "Q5_K", "Q6_K", "Q8_0"]


def random_raw(type_name: str, rows: int, cols: int) -> np.ndarray:
    """Rows of random blocks whose half-precision numbers are finite and not zero."""
    rng = np.random.default_rng(rows + cols)
    layout = FORMATS[type_name].layout
    raw = rng.integers(0, 256, (rows, cols // (256 if "K" in type_name else 32) * layout.itemsize), np.uint8)
    blocks = raw.view(layout)
    for field in {"d", "m", "dmin"} & set(layout.names or ()):
        blocks[field] = rng.choice([-1, 1], blocks.shape) * rng.uniform(0.001, 2, blocks.shape)
    return raw


def packed_from_groups(groups: Groups, bits: int, isa: str) -> native.Matrix:
    kind = "half" if groups.sub_scale is None else "super"
    kind += "" if groups.offset is None else "_offset"
    codes = "s8" if bits == 8 else f"u{bits}"
    matrix = native.Matrix(*groups.codes.shape, codes, kind, groups.group, groups.zero, isa)
    halves = [None if array is None else array.view(np.uint16) for array in (groups.scale, groups.offset)]
    sub_scale = None if groups.sub_scale is None else groups.sub_scale.view(np.int8)
    matrix.pack(0, groups.codes.view(np.uint8), *halves, sub_scale, groups.sub_offset)
    return matrix


@pytest.mark.parametrize("isa", native.isas())
@pytest.mark.parametrize(("rows", "cols"), [(1, 256), (8, 1024), (21, 768)])
@pytest.mark.parametrize("type_name", TYPES)
def test_every_type_gives_the_matrix_of_its_decoded_groups(type_name: str, rows: int, cols: int, isa: str):
    raw = random_raw(type_name, rows, cols)
    raw.flags.writeable = False  # as a mapped file's bytes
    groups = FORMATS[type_name].decode(raw)
    assert isinstance(groups, Groups)
    matrix = native.pack_file(raw, cols, type_name, isa)
    assert (matrix.rows, matrix.cols) == (rows, cols)
    weights = np.stack([matrix.dequantize_row(row) for row in range(rows)])
    np.testing.assert_array_equal(weights.view(np.uint32), groups.dequantize().view(np.uint32))
    by_groups = packed_from_groups(groups, groups.bits, isa)
    assert matrix.nbytes == by_groups.nbytes
    x = np.random.default_rng(0).standard_normal((5, cols)).astype(np.float32)
    products = [native.matmul(m, x, 1, isa) for m in (matrix, by_groups)]
    np.testing.assert_array_equal(products[0].view(np.uint32), products[1].view(np.uint32))


@pytest.mark.parametrize("type_name", ["Q5_0", "Q8_0"])
def test_a_row_of_one_block_more_than_whole_super_blocks_is_packed(type_name: str):
    raw = random_raw(type_name, 9, 288)
    groups = FORMATS[type_name].decode(raw)
    matrix = native.pack_file(raw, 288, type_name, "scalar")
    np.testing.assert_array_equal(matrix.dequantize_row(8), groups.dequantize()[8])


@pytest.mark.parametrize(
    ("type_name", "cols", "wrong"),
    [
        ("Q4_1", 256, "columns"),  # twice as many as there are
        ("Q4_1", 64, "columns"),
        ("Q4_1", 130, "whole blocks"),
        ("Q4_1", 0, "columns"),
        ("Q4_1", -128, "columns"),
        ("Q8_0", 128, "columns"),
        ("Q4_K", 128, "columns"),
        ("Q1_X", 128, "type"),
        ("F32", 20, "type"),
    ],
)
def test_bytes_that_do_not_go_with_the_columns_are_refused(type_name: str, cols: int, wrong: str):
    with pytest.raises(ValueError, match=wrong):
        native.pack_file(random_raw("Q4_1", 8, 128), cols, type_name, "scalar")
