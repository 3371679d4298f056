"""Tensors packed: exactly where a layout has their numbers, otherwise as floats near by."""

from dataclasses import replace

import numpy as np
import pytest

from corral.weights.formats import FORMATS
from corral.weights.groups import Groups
from corral.weights.qtensor import QTensor

native = pytest.importorskip("corral._native", reason="the native module is not built", exc_type=ImportError)

from corral.executors.packing import FILE_TYPES, pack  # noqa: E402 - needs the native module

M, K = 13, 512
RNG = np.random.default_rng(0)
NF4 = np.linspace(-1, 1, 16, dtype=np.float32) ** 3


def random_raw(type_name: str, rows: int, cols: int) -> np.ndarray:
    """Rows of random blocks whose half-precision numbers are finite and not zero."""
    rng = np.random.default_rng(rows + cols)
    block, layout = FORMATS[type_name].block, FORMATS[type_name].layout
    raw = rng.integers(0, 256, (rows, cols // block * layout.itemsize), np.uint8)
    blocks = raw.view(layout)
    for field in {"d", "m", "dmin"} & set(layout.names or ()):
        blocks[field] = rng.choice([-1, 1], blocks.shape) * rng.uniform(0.001, 2, blocks.shape)
    return raw


def whole(low: int, high: int, columns: int, kind: type = np.uint8) -> np.ndarray:
    return RNG.integers(low, high, (M, columns)).astype(kind)


def halves(columns: int, kind: type = np.float16) -> np.ndarray:
    return RNG.normal(0, 0.01, (M, columns)).astype(np.float16).astype(kind)


def form(bits: int, group: int, **changes) -> Groups:
    return replace(Groups(whole(0, 1 << bits, K), bits, group, halves(K // group)), **changes)


SUPER = {"scale": halves(2), "sub_scale": whole(-128, 128, K // 16, np.int8)}
NIBBLES = {
    "scale": halves(2),
    "offset": halves(2),
    "sub_scale": whole(0, 16, K // 16),
    "sub_offset": whole(0, 16, K // 16),
    "sub_bits": 4,
}
# With the bytes of 32 columns of 8 rows: their codes, their scales.
EXACT = {
    "one bit": (form(1, 128), 64, 16),
    "two bits": (form(2, 64, zero=2), 64, 16),
    "three bits, offset": (form(3, 32, offset=halves(K // 32)), 96, 32),
    "zero a group": (form(4, 128, zero=whole(0, 17, K // 128)), 128, 24),
    "scale a row": (form(4, K, zero=8), 128, 16),
    "groups of 16": (form(4, 16, zero=8), 128, 32),
    "groups of 48": (form(4, 48, codes=whole(0, 16, 480), scale=halves(10)), 128, 32),
    "seven bits": (form(7, 32, zero=64), 256, 16),
    "eight bits": (form(8, 64, zero=128), 256, 16),
    "eight bits, zero a group": (form(8, 64, zero=whole(0, 256, K // 64)), 256, 24),
    "eight bits with a sign": (form(8, 32, codes=whole(-128, 128, K, np.int8)), 256, 16),
    "float32 scales that are halves": (form(5, 32, scale=halves(K // 32, np.float32)), 160, 16),
    "unit that halves have": (form(4, 32, unit=2.0), 128, 16),
    "unit beside super-blocks": (form(3, 16, **SUPER, unit=2.0**-20), 96, 18),
    "scale of two super-blocks": (form(2, 16, **{**SUPER, "scale": halves(1)}), 64, 18),
    "nibbles": (form(2, 16, **NIBBLES), 64, 20),
    "bytes": (form(2, 16, **{**NIBBLES, "sub_bits": 7}), 64, 36),
    "table of eight": (form(3, 32, table=np.arange(-43, 45, 11, dtype=np.int8)), 128, 16),
    "table of sixty-four": (form(6, 32, table=np.arange(-126, 127, 4, dtype=np.int8)), 256, 16),
}
ROUNDED = {
    "table of fractions": form(4, 64, table=NF4),
    "scale that no half has": form(4, 32, scale=RNG.normal(1, 0.1, (M, K // 32)).astype(np.float32)),
    "unit that no half has": form(4, 32, unit=1 / 3),
    "sub scale of 8 bits without a sign": form(3, 16, scale=halves(2), sub_scale=whole(100, 256, K // 16)),
    "zero of 8 bits": form(4, 32, zero=whole(128, 256, K // 32)),
    "zero and offset": form(4, 32, zero=8, offset=halves(K // 32)),
    "zero a group and super-blocks": form(4, 16, **SUPER, zero=whole(0, 16, K // 16)),
    "super-blocks of 128": form(4, 16, **{**SUPER, "scale": halves(4)}),
    "offset without sub offset": form(4, 16, **SUPER, offset=halves(2)),
    "groups of 8": form(4, 8),
    "half a block": form(4, 16, codes=whole(0, 16, 496), scale=halves(31)),
}
OUT_OF_RANGE = {
    "large": form(4, 32, scale=np.full((M, K // 32), 1e6, np.float32)),
    "small": form(4, 32, scale=np.full((M, K // 32), 1e-9, np.float32)),
    "infinite": form(4, 64, table=NF4, scale=np.full((M, K // 64), np.inf, np.float16)),
}


def packed_weights(groups: Groups) -> tuple[np.ndarray, native.Matrix]:
    matrix = pack(QTensor("w", groups.codes.shape, "GENERAL", (groups,)), "scalar")
    return np.stack([matrix.dequantize_row(row) for row in range(M)]), matrix


@pytest.mark.parametrize("name", EXACT)
def test_form_that_a_layout_has_is_packed_exactly_in_its_bits(name: str):
    groups, codes, scales = EXACT[name]
    weights, matrix = packed_weights(groups)
    np.testing.assert_array_equal(weights, groups.dequantize())
    blocks, panels = groups.codes.shape[1] // 32, 2
    assert matrix.nbytes == panels * (blocks * codes + (blocks * scales + 63) // 64 * 64)


def test_columns_of_a_form_are_packed_alone():
    tensor = QTensor("w", (M, K), "GENERAL", (EXACT["zero a group"][0],)).columns_between(128, 384)
    matrix = pack(tensor, "scalar")
    np.testing.assert_array_equal([matrix.dequantize_row(row) for row in range(M)], tensor.dequantize())


@pytest.mark.parametrize("name", ROUNDED)
def test_form_that_no_layout_has_becomes_floats_of_16_bits(name: str):
    weights, matrix = packed_weights(ROUNDED[name])
    np.testing.assert_allclose(weights, ROUNDED[name].dequantize(), rtol=2**-11, atol=2**-25)
    assert matrix.nbytes == 16 * 2 * weights.shape[1]


@pytest.mark.parametrize("name", OUT_OF_RANGE)
def test_weights_outside_half_precision_become_floats_of_32_bits(name: str):
    weights, matrix = packed_weights(OUT_OF_RANGE[name])
    np.testing.assert_array_equal(weights, OUT_OF_RANGE[name].dequantize())
    assert matrix.nbytes == 16 * 4 * K


def test_numbers_of_a_later_row_that_no_layout_has_are_found():
    scale = halves(K // 32, np.float32)
    scale[-1, -1] = 1 / 3
    _, matrix = packed_weights(form(4, 32, scale=scale))
    assert matrix.nbytes == 16 * 2 * K


@pytest.mark.parametrize("isa", native.isas())
@pytest.mark.parametrize("type_name", ["Q2_K", "Q3_K", "IQ4_NL", "IQ4_XS"])
def test_types_of_few_bits_take_little_more_than_the_file(type_name: str, isa: str):
    raw = random_raw(type_name, M, 2048)
    tensor = QTensor("w", (M, 2048), type_name, (raw,))
    matrix = pack(tensor, isa)
    weights = np.stack([matrix.dequantize_row(row) for row in range(M)])
    np.testing.assert_array_equal(weights, tensor.dequantize())
    assert matrix.nbytes <= 1.04 * raw.nbytes * 16 / M


@pytest.mark.parametrize("isa", native.isas())
@pytest.mark.parametrize("type_name", sorted(set(FORMATS) - {"F32", "F16", "BF16"}))
def test_every_type_multiplies_near_its_dequantised_weights(type_name: str, isa: str):
    tensor = QTensor("w", (M, K), type_name, (random_raw(type_name, M, K),))
    x = RNG.standard_normal((3, K)).astype(np.float32)
    out = native.matmul(pack(tensor, isa), x, 1, isa)
    exact = x.astype(np.float64) @ tensor.dequantize().astype(np.float64).T
    assert np.linalg.norm(out - exact) < 0.01 * np.linalg.norm(exact)


@pytest.mark.parametrize("type_name", ["F32", "F16", "BF16"])
def test_stack_of_floats_keeps_them(type_name: str):
    values = RNG.normal(0, 1, (2, M, 48)).astype(np.float32)
    raw = {
        "F32": values.view(np.uint8),
        "F16": values.astype(np.float16).view(np.uint8),
        "BF16": np.ascontiguousarray(values.view(np.uint16)[..., 1::2]).view(np.uint8),
    }[type_name]
    tensor = QTensor("w", (M, 48), type_name, tuple(raw)).columns_between(1, 48)
    matrix = pack(tensor, "scalar")
    weights = [[matrix.expert(e).dequantize_row(row) for row in range(M)] for e in range(2)]
    np.testing.assert_array_equal(weights, tensor.dequantize())
    assert matrix.nbytes == 2 * 2 * 64 * ((8 * 47 * FORMATS[type_name].layout.itemsize + 63) // 64)


@pytest.mark.parametrize("isa", native.isas())
@pytest.mark.parametrize(("rows", "cols"), [(1, 256), (8, 1024), (21, 768)])
@pytest.mark.parametrize("type_name", sorted(FILE_TYPES))
def test_blocks_packed_natively_give_the_matrix_of_their_decoded_groups(
    type_name: str, rows: int, cols: int, isa: str
):
    raw = random_raw(type_name, rows, cols)
    raw.flags.writeable = False  # as a mapped file's bytes
    tensor = QTensor("w", (rows, cols), type_name, (raw,))
    groups = tensor.decode()
    assert isinstance(groups, Groups)
    matrix = pack(tensor, isa)
    assert (matrix.rows, matrix.cols) == (rows, cols)
    weights = np.stack([matrix.dequantize_row(row) for row in range(rows)])
    np.testing.assert_array_equal(weights.view(np.uint32), groups.dequantize().view(np.uint32))
    by_groups = pack(QTensor("w", (rows, cols), "GENERAL", (groups,)), isa)
    assert matrix.nbytes == by_groups.nbytes
    x = np.random.default_rng(0).standard_normal((5, cols)).astype(np.float32)
    products = [native.matmul(m, x, 1, isa) for m in (matrix, by_groups)]
    np.testing.assert_array_equal(products[0].view(np.uint32), products[1].view(np.uint32))


@pytest.mark.parametrize("type_name", ["Q5_0", "Q8_0"])
def test_a_row_of_one_block_more_than_whole_super_blocks_is_packed(type_name: str):
    tensor = QTensor("w", (9, 288), type_name, (random_raw(type_name, 9, 288),))
    np.testing.assert_array_equal(pack(tensor, "scalar").dequantize_row(8), tensor.dequantize()[8])


@pytest.mark.parametrize("type_name", ["Q5_0", "Q4_K"])
def test_a_cut_of_a_stack_is_packed_without_its_other_rows_and_columns(type_name: str):
    parts = tuple(random_raw(type_name, rows, 768)[:21] for rows in (21, 22))
    cut = QTensor("w", (21, 768), type_name, parts).rows_between(3, 20).columns_between(256, 768)
    matrix = pack(cut, "scalar")
    assert (matrix.rows, matrix.cols, matrix.experts) == (17, 512, 2)
    weights = [[matrix.expert(e).dequantize_row(row) for row in range(17)] for e in range(2)]
    np.testing.assert_array_equal(weights, cut.dequantize())


def q4_1(rows: int, cols: int) -> native.Matrix:
    return native.Matrix(rows, cols, "scalar", codes="u4", scales="half_offset", group=32)


@pytest.mark.parametrize(
    ("matrix", "type_name", "wrong"),
    [
        (q4_1(8, 256), "Q4_1", "bytes"),  # twice as many columns as there are
        (q4_1(8, 64), "Q4_1", "bytes"),
        (q4_1(16, 128), "Q4_1", "bytes"),
        (q4_1(8, 128), "Q8_0", "bytes"),
        (q4_1(8, 256), "Q4_K", "bytes"),
        (q4_1(8, 128), "Q1_X", "type"),
        (q4_1(8, 128), "F32", "type"),
        (native.Matrix(8, 128, "scalar", codes="u4", scales="half", group=16), "Q4_1", "groups"),
        (q4_1(8, 160), "Q4_K", "whole blocks"),
        (native.Matrix(8, 128, "scalar", codes="f32"), "Q4_1", "groups"),
        (
            native.Matrix(8, 128, "scalar", codes="u4", scales="half_offset", group=32, experts=2),
            "Q4_1",
            "expert",
        ),
    ],
)
def test_bytes_that_do_not_go_with_the_matrix_are_refused(matrix: native.Matrix, type_name: str, wrong: str):
    with pytest.raises(ValueError, match=wrong):
        matrix.pack_file(random_raw("Q4_1", 8, 128), type_name)


@pytest.mark.parametrize("matrix", [q4_1(8, 128), native.Matrix(8, 64, "scalar", codes="f16")])
def test_floats_that_do_not_go_with_the_matrix_are_refused(matrix: native.Matrix):
    for raw in (np.zeros((8, 64), np.uint8), np.zeros((9, 128), np.uint8), np.zeros((128, 8), np.uint8).T):
        with pytest.raises(ValueError, match=r"a tensor's bytes|floats for a quantised"):
            matrix.pack_raw_floats(raw)
