"""The packed matmul: every kind of matrix against whole-number arithmetic, on every instruction set."""

import subprocess
import sys
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from corral.weights.groups import Groups

native = pytest.importorskip("corral._native", reason="the native module is not built", exc_type=ImportError)

ISAS = native.isas()
ROWS = (1, 8, 21)
COLS = 512
MOST_TOKENS = 23


@dataclass(frozen=True)
class Kind:
    codes: str
    scales: str
    group: int

    @property
    def has_super(self) -> bool:
        return self.scales.startswith("super")

    @property
    def has_offset(self) -> bool:
        return self.scales.endswith("offset")

    @property
    def code_range(self) -> tuple[int, int]:
        return (-128, 127) if self.codes == "s8" else (0, 2 ** int(self.codes[1]) - 1)

    @property
    def zero(self) -> int:
        return 0 if self.has_offset or self.codes == "s8" else 2 ** int(self.codes[1]) // 2


SCALES = ("half", "half_offset", "super", "super_offset")
KINDS = [Kind(*parts) for parts in product(("u4", "u5", "u6", "s8"), SCALES, (16, 32))]
FLOATS = {"f32": np.float32, "f16": np.float16, "bf16": None}


@pytest.fixture(params=KINDS, ids=lambda kind: f"{kind.codes}-{kind.scales}-{kind.group}")
def kind(request: pytest.FixtureRequest) -> Kind:
    return request.param


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest) -> str:
    return request.param


def random_groups(kind: Kind, rows: int, cols: int = COLS, seed: int = 0) -> Groups:
    rng = np.random.default_rng(seed)
    low, high = kind.code_range
    counts = rows, cols // 256 if kind.has_super else cols // kind.group
    subs = rows, cols // kind.group
    return Groups(
        codes=rng.integers(low, high + 1, (rows, cols)).astype(np.int8 if low else np.uint8),
        bits=int(kind.codes[1]),
        group=kind.group,
        scale=rng.normal(0, 0.01, counts).astype(np.float16),
        offset=rng.normal(0, 0.05, counts).astype(np.float16) if kind.has_offset else None,
        sub_scale=rng.integers(-128, 128, subs).astype(np.int8) if kind.has_super else None,
        sub_offset=rng.integers(0, 256, subs).astype(np.uint8)
        if kind.has_super and kind.has_offset
        else None,
        zero=kind.zero,
    )


def pack_rows(matrix: native.Matrix, groups: Groups, start: int, stop: int) -> None:
    def part(array: np.ndarray | None, view: type) -> np.ndarray | None:
        return None if array is None else array[start:stop].view(view)

    matrix.pack(
        start,
        part(groups.codes, np.uint8),
        part(groups.scale, np.uint16),
        part(groups.offset, np.uint16),
        part(groups.sub_scale, np.int8),
        part(groups.sub_offset, np.uint8),
    )


def packed(kind: Kind, groups: Groups, isa: str) -> native.Matrix:
    rows, cols = groups.codes.shape
    matrix = native.Matrix(rows, cols, kind.codes, kind.scales, kind.group, groups.zero, isa)
    pack_rows(matrix, groups, 0, rows)
    return matrix


def random_rows(n: int, cols: int = COLS, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, cols)).astype(np.float32)


def quantised(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Codes [N, K] and scales [N, K / 8] by definition: a scale for 32 columns times a factor for 8."""
    groups = x.reshape(len(x), -1, 4, 8)
    largest = np.abs(groups).max(axis=3)
    top = largest.max(axis=2, keepdims=True)
    usable = top >= 1e-30
    share = largest * np.divide(np.float32(16), top, out=np.zeros_like(top), where=usable)
    factor = np.clip(np.ceil(share), 1, 16)
    inverse = np.divide(np.float32(2032), top, out=np.zeros_like(top), where=usable) / factor
    codes = np.rint(groups * inverse[:, :, :, None]).astype(np.int64)
    scales = (top / np.float32(2032)).astype(np.float64) * factor
    return codes.reshape(x.shape), scales.reshape(len(x), -1)


def expected_product(groups: Groups, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The int8 pipeline in whole numbers and float64, and the sum of the sizes of what it adds up."""
    q, x_scale = quantised(x)
    rows, eights = len(groups.codes), groups.codes.shape[1] // 8
    scale = groups.scale.astype(np.float64)
    offset = np.zeros_like(scale) if groups.offset is None else groups.offset.astype(np.float64)
    if groups.sub_scale is not None:
        scale = np.repeat(scale, 256 // groups.group, axis=1) * groups.sub_scale
        offset = np.repeat(offset, 256 // groups.group, axis=1)
        offset = offset * 0 if groups.sub_offset is None else -offset * groups.sub_offset
    scale, offset = (np.repeat(each, groups.group // 8, axis=1) for each in (scale, offset))
    codes = groups.codes.astype(np.int64).reshape(rows, eights, 8)
    sums = np.einsum("mgk,ngk->nmg", codes, q.reshape(len(x), eights, 8))
    code_sums = q.reshape(len(x), 1, eights, 8).sum(axis=3)
    by = x_scale[:, None, :]
    terms = (scale * (sums - groups.zero * code_sums) + offset * code_sums) * by
    sizes = np.abs(scale * sums * by) + np.abs(
        (np.abs(scale * groups.zero) + np.abs(offset)) * code_sums * by
    )
    return terms.sum(axis=2), sizes.sum(axis=2)


def assert_equals_pipeline(kind: Kind, groups: Groups, x: np.ndarray, isa: str) -> None:
    out = native.matmul(packed(kind, groups, isa), x, 1, isa)
    expected, size = expected_product(groups, x)
    assert out.dtype == np.float32
    assert np.all(np.abs(out - expected) <= 1e-6 * size + 1e-30)


@pytest.mark.parametrize("rows", ROWS)
def test_dequantised_rows_equal_those_of_groups(kind: Kind, rows: int, isa: str):
    groups = random_groups(kind, rows)
    matrix = packed(kind, groups, isa)
    got = np.stack([matrix.dequantize_row(row) for row in range(rows)])
    assert np.array_equal(got, groups.dequantize())


def test_packing_in_parts_gives_the_same_matrix(kind: Kind, isa: str):
    groups = random_groups(kind, 21)
    matrix = native.Matrix(21, COLS, kind.codes, kind.scales, kind.group, groups.zero, isa)
    for start, stop in ((16, 21), (0, 8), (8, 16)):
        pack_rows(matrix, groups, start, stop)
    got = np.stack([matrix.dequantize_row(row) for row in range(21)])
    assert np.array_equal(got, groups.dequantize())


@pytest.mark.parametrize("rows", ROWS)
def test_product_equals_the_integer_pipeline(kind: Kind, isa: str, rows: int):
    assert_equals_pipeline(kind, random_groups(kind, rows), random_rows(MOST_TOKENS), isa)


@pytest.mark.parametrize("cols", [256, 2048, 2304, 4352])
def test_product_of_any_width_equals_the_integer_pipeline(kind: Kind, isa: str, cols: int):
    assert_equals_pipeline(kind, random_groups(kind, 9, cols), random_rows(5, cols), isa)


@pytest.mark.parametrize("cols", [32, 64, 96, 576, 2080, 4128])
@pytest.mark.parametrize("codes", ["u4", "u5", "u6", "s8"])
@pytest.mark.parametrize("scales", ["half", "half_offset"])
def test_product_of_odd_widths_equals_the_integer_pipeline(codes: str, scales: str, cols: int, isa: str):
    kind = Kind(codes, scales, 32)
    assert_equals_pipeline(kind, random_groups(kind, 9, cols), random_rows(5, cols), isa)


@pytest.mark.parametrize("sign", ["positive", "negative", "alternating", "halves", "random"])
def test_extreme_codes_do_not_saturate(kind: Kind, isa: str, sign: str):
    signs = {
        "positive": np.ones(COLS),
        "negative": -np.ones(COLS),
        "alternating": np.where(np.arange(COLS) % 2, -1, 1),
        "halves": np.where(np.arange(COLS) % 32 < 16, -1, 1),
        "random": np.random.default_rng(5).choice([-1, 1], COLS),
    }
    x = np.stack([signs[sign], -signs[sign]]).astype(np.float32)  # every activation code is 127 or -127
    for extreme in kind.code_range:
        groups = random_groups(kind, 16)
        full = np.full_like(groups.codes, extreme)
        subs = None if groups.sub_scale is None else np.full_like(groups.sub_scale, -128)
        assert_equals_pipeline(kind, replace(groups, codes=full, sub_scale=subs), x, isa)


def test_extreme_codes_against_the_sign_of_the_activations_do_not_saturate(isa: str):
    kind = Kind("s8", "half", 32)
    x = np.random.default_rng(3).choice([-1, 1], (4, COLS)).astype(np.float32)
    for low, high in ((-128, 127), (-127, 127), (-128, -128)):
        codes = np.where(x[:1] > 0, high, low).astype(np.int8).repeat(8, axis=0)
        assert_equals_pipeline(kind, replace(random_groups(kind, 8), codes=codes), x, isa)


def test_product_is_close_to_that_of_float_weights(kind: Kind, isa: str):
    groups, x = random_groups(kind, 21), random_rows(7)
    out = native.matmul(packed(kind, groups, isa), x, 1, isa)
    exact = x.astype(np.float64) @ groups.dequantize().astype(np.float64).T
    assert np.linalg.norm(out - exact) < 0.01 * np.linalg.norm(exact)


def test_bits_do_not_depend_on_the_number_of_rows(kind: Kind, isa: str):
    matrix, x = packed(kind, random_groups(kind, 21), isa), random_rows(MOST_TOKENS)
    together = native.matmul(matrix, x, 1, isa)
    for n in range(1, MOST_TOKENS + 1):
        assert np.array_equal(native.matmul(matrix, x[:n], 1, isa), together[:n])
        assert np.array_equal(native.matmul(matrix, x[n - 1 : n], 1, isa), together[n - 1 : n])


def test_bits_do_not_depend_on_threads_or_panels(kind: Kind, isa: str):
    matrix, x = packed(kind, random_groups(kind, 60), isa), random_rows(6)
    alone = native.matmul(matrix, x, 1, isa, chunk=1000)
    for threads, chunk in product((1, 2, 3), (1, 2, 3, 5)):
        assert np.array_equal(native.matmul(matrix, x, threads, isa, chunk=chunk), alone)


@pytest.mark.parametrize("other", ISAS[1:])
def test_every_instruction_set_gives_the_same_bits(kind: Kind, other: str):
    groups, x = random_groups(kind, 37, 2304), random_rows(MOST_TOKENS, 2304)
    scalar, fast = packed(kind, groups, "scalar"), packed(kind, groups, other)
    expected = native.matmul(scalar, x, 1, "scalar")
    assert np.array_equal(native.matmul(fast, x, 1, other), expected)
    assert np.array_equal(native.matmul(fast, x, 1, "scalar"), expected)


def bf16(values: np.ndarray) -> np.ndarray:
    bits = values.view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000).astype(np.uint32).view(np.float32)


@pytest.mark.parametrize("codes", FLOATS)
@pytest.mark.parametrize("cols", [1, 2, 3, 4, 67, 256])
def test_float_matrix_multiplies_with_the_same_bits_everywhere(codes: str, cols: int):
    weights, x = random_rows(21, cols), random_rows(MOST_TOKENS, cols, seed=2)
    matrix = native.Matrix(21, cols, codes, "none", 0, 0, "scalar")
    matrix.pack_floats(16, weights[16:])
    matrix.pack_floats(0, weights[:16])
    stored = bf16(weights) if codes == "bf16" else weights.astype(FLOATS[codes]).astype(np.float32)
    assert np.array_equal(np.stack([matrix.dequantize_row(row) for row in range(21)]), stored)
    scalar = native.matmul(matrix, x, 1, "scalar")
    sizes = np.abs(x).astype(np.float64) @ np.abs(stored).T
    assert np.all(np.abs(scalar - x.astype(np.float64) @ stored.T) <= 1e-6 * sizes)
    for isa, n in product(ISAS, range(1, MOST_TOKENS + 1)):
        assert np.array_equal(native.matmul(matrix, x[:n], 2, isa, chunk=1), scalar[:n])


def test_no_rows_give_no_results(isa: str):
    kind = Kind("u4", "half", 32)
    assert native.matmul(packed(kind, random_groups(kind, 9), isa), random_rows(0), 2, isa).shape == (0, 9)


@pytest.mark.parametrize("size", [1e-25, 1e-3, 1.0, 1e4, 1e30])
def test_activations_are_rounded_to_the_nearest_code(isa: str, size: float):
    x = random_rows(1, 4096) * np.float32(size)
    x[0, 32:64] = 0
    x[0, 64:96] = np.linspace(-1, 1, 32, dtype=np.float32) * np.float32(size)
    codes, scale = native.quantize_row(x[0], isa)
    expected_codes, expected_scale = quantised(x)
    assert np.array_equal(codes, expected_codes[0])
    np.testing.assert_allclose(scale, expected_scale[0], rtol=1e-7)


def test_activations_too_small_to_divide_by_become_zero(isa: str):
    codes, scale = native.quantize_row(np.full(64, 1e-38, np.float32), isa)
    assert not codes.any()
    assert np.all(scale < 1e-37)


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_a_row_that_is_not_finite_spoils_no_other_row(kind: Kind, isa: str, poison: float):
    matrix, x = packed(kind, random_groups(kind, 21), isa), random_rows(5)
    clean = native.matmul(matrix, x, 1, isa)
    x[2, 77] = poison
    out = native.matmul(matrix, x, 1, isa)
    assert not np.isfinite(out[2]).any()
    assert np.array_equal(np.delete(out, 2, axis=0), np.delete(clean, 2, axis=0))
    assert native.quantize_row(x[2], isa)[0].min() >= -127


@pytest.mark.parametrize(
    ("rows", "cols", "codes", "scales", "group", "zero", "message"),
    [
        (0, 32, "u4", "half", 32, 8, "positive"),
        (8, -32, "u4", "half", 32, 8, "positive"),
        (8, 48, "u4", "half", 16, 8, "whole blocks"),
        (8, 288, "u4", "super", 32, 0, "whole blocks"),
        (8, 32, "u4", "half", 64, 8, "16 or 32"),
        (8, 32, "u4", "half_offset", 32, 8, "zero point"),
        (8, 32, "u4", "half", 32, 128, "zero point"),
        (8, 32, "u4", "none", 32, 8, "have no scales"),
        (8, 32, "f32", "half", 32, 0, "have no scales"),
        (8, 32, "u3", "half", 32, 0, "u3"),
        (8, 32, "u4", "third", 32, 0, "third"),
    ],
)
def test_impossible_matrix_is_refused(
    rows: int, cols: int, codes: str, scales: str, group: int, zero: int, message: str
):
    with pytest.raises(ValueError, match=message):
        native.Matrix(rows, cols, codes, scales, group, zero, "scalar")


@pytest.mark.parametrize(("start", "stop"), [(4, 12), (0, 12), (16, 24), (24, 29), (-8, 0)])
def test_rows_out_of_place_are_refused(start: int, stop: int, isa: str):
    kind = Kind("u4", "half", 32)
    matrix = native.Matrix(21, COLS, kind.codes, kind.scales, kind.group, kind.zero, isa)
    groups = random_groups(kind, stop - start)
    with pytest.raises(ValueError, match="wrong matrix"):
        matrix.pack(start, groups.codes, groups.scale.view(np.uint16), None, None, None)


def test_arrays_of_the_wrong_shape_or_type_are_refused():
    kind = Kind("u4", "half", 32)
    matrix, groups = native.Matrix(16, COLS, "u4", "half", 32, 8, "scalar"), random_groups(kind, 16)
    codes, scale = groups.codes, groups.scale.view(np.uint16)
    for wrong in ((codes[:, :-32], scale), (codes, scale[:8]), (codes, scale[:, :1])):
        with pytest.raises(ValueError, match="wrong shape"):
            matrix.pack(0, *(np.ascontiguousarray(array) for array in wrong), None, None, None)
    for wrong in ((codes.view(np.int8), scale), (codes, groups.scale), (np.asfortranarray(codes), scale)):
        with pytest.raises(TypeError):
            matrix.pack(0, *wrong, None, None, None)
    with pytest.raises(ValueError, match="missing"):
        native.Matrix(16, COLS, "u4", "half_offset", 32, 0, "scalar").pack(0, codes, scale, None, None, None)
    with pytest.raises(ValueError, match="width"):
        native.matmul(matrix, random_rows(2, 64), 1, "scalar")


@pytest.mark.skipif("avx512vnni" not in ISAS, reason="needs two kernels that order columns differently")
def test_matrix_packed_for_other_instructions_is_refused():
    kind = Kind("u4", "half", 32)
    matrix = packed(kind, random_groups(kind, 8), "avx2")
    with pytest.raises(ValueError, match="other instructions"):
        native.matmul(matrix, random_rows(1), 1, "avx512vnni")


MEASURE = """
import resource
import numpy as np
from corral import _native
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()
codes, scale = np.ones((64, 4096), np.uint8), np.ones((64, 128), np.uint16)
before = resident()
matrices = [_native.Matrix(64, 4096, "u4", "half", 32, 8, "scalar") for _ in range(400)]
for matrix in matrices:
    matrix.pack(0, codes, scale, None, None, None)
print(sum(matrix.nbytes for matrix in matrices), resident() - before)
del matrix, matrices
print(0, resident() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="no /proc that tells resident memory")
def test_matrices_take_their_bytes_and_give_them_back():
    script = [sys.executable, "-c", MEASURE]  # in a process of its own: others' matrices share pages
    lines = subprocess.run(script, check=True, capture_output=True, text=True).stdout.splitlines()
    for line in lines:
        size, taken = map(int, line.split())
        assert size - (4 << 20) < taken < size + (4 << 20)
    assert int(lines[0].split()[0]) > 50 << 20
