"""The packed matmul: every kind of matrix against whole-number arithmetic, on every instruction set."""

import subprocess
import sys
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from corral.weights.groups import Groups
from corral.weights.qtensor import QTensor

native = pytest.importorskip("corral._native", reason="the native module is not built", exc_type=ImportError)

from corral.executors.packing import pack  # noqa: E402 - needs the native module

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
        return self.scales.endswith(("offset", "nibbles"))

    @property
    def bits(self) -> int:
        return int(self.codes[1])

    @property
    def code_range(self) -> tuple[int, int]:
        return (-128, 127) if self.codes == "s8" else (0, 2**self.bits - 1)

    @property
    def sub_bits(self) -> int:
        return 4 if self.scales == "super_nibbles" else 8

    @property
    def zero(self) -> int:
        return 0 if self.has_offset or self.codes in ("s8", "t4") else 2**self.bits // 2


CODES = ("u2", "u3", "u4", "t4", "u5", "u6", "s8")
SCALES = ("half", "half_offset", "super", "super_offset")
KINDS = [
    Kind(*parts)
    for parts in (
        *product(CODES, SCALES, (16, 32)),
        *product(("u2", "u4", "t4", "s8"), ("half_zero", "super_nibbles"), (16, 32)),
    )
]
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
    sub_limit = 2**kind.sub_bits
    signed = kind.sub_bits == 8
    sub_scale = rng.integers(-128 if signed else 0, 128 if signed else sub_limit, subs)
    zeros = rng.integers(0, min(high + 2, 128), subs).astype(np.uint8)
    table = np.sort(rng.integers(-128, 128, 16)).astype(np.int8)
    table[0], table[-1] = -128, 127
    return Groups(
        codes=rng.integers(low, high + 1, (rows, cols)).astype(np.int8 if low else np.uint8),
        bits=kind.bits,
        group=kind.group,
        scale=rng.normal(0, 0.01, counts).astype(np.float16),
        offset=rng.normal(0, 0.05, counts).astype(np.float16) if kind.has_offset else None,
        sub_scale=sub_scale.astype(np.int8 if signed else np.uint8) if kind.has_super else None,
        sub_offset=rng.integers(0, sub_limit, subs).astype(np.uint8)
        if kind.has_super and kind.has_offset
        else None,
        sub_bits=kind.sub_bits,
        zero=zeros if kind.scales == "half_zero" else kind.zero,
        table=table if kind.codes == "t4" else None,
        unit=0.125 if kind.has_super else 1.0,
    )


def packed(groups: Groups, isa: str) -> native.Matrix:
    return pack(QTensor("w", groups.codes.shape, "GENERAL", (groups,)), isa)


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

    def spread(numbers: np.ndarray) -> np.ndarray:
        return np.repeat(numbers.astype(np.float64), eights // numbers.shape[1], axis=1)

    scale = spread(groups.scale) * groups.unit
    offset = np.zeros_like(scale) if groups.offset is None else spread(groups.offset) * groups.unit
    if groups.sub_scale is not None:
        scale = scale * spread(groups.sub_scale)
        offset = offset if groups.sub_offset is None else -offset * spread(groups.sub_offset)
    zero = groups.zero if isinstance(groups.zero, int) else spread(groups.zero)
    values = groups.codes if groups.table is None else groups.table[groups.codes]
    sums = np.einsum(
        "mgk,ngk->nmg", values.astype(np.int64).reshape(rows, eights, 8), q.reshape(len(x), eights, 8)
    )
    code_sums = q.reshape(len(x), 1, eights, 8).sum(axis=3)
    by = x_scale[:, None, :]
    terms = (scale * (sums - zero * code_sums) + offset * code_sums) * by
    sizes = np.abs(scale * sums * by) + np.abs((np.abs(scale * zero) + np.abs(offset)) * code_sums * by)
    return terms.sum(axis=2), sizes.sum(axis=2)


def assert_equals_pipeline(groups: Groups, x: np.ndarray, isa: str) -> None:
    out = native.matmul(packed(groups, isa), x, 1, isa)
    expected, size = expected_product(groups, x)
    assert out.dtype == np.float32
    assert np.all(np.abs(out - expected) <= 1e-6 * size + 1e-30)


@pytest.mark.parametrize("rows", ROWS)
def test_dequantised_rows_equal_those_of_groups(kind: Kind, rows: int, isa: str):
    groups = random_groups(kind, rows)
    matrix = packed(groups, isa)
    got = np.stack([matrix.dequantize_row(row) for row in range(rows)])
    assert np.array_equal(got, groups.dequantize())


def test_packing_in_parts_gives_the_same_matrix(isa: str):
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 16, (21, COLS)).astype(np.uint8)
    scale = rng.normal(0, 0.01, (21, COLS // 32)).astype(np.float16)
    matrix = native.Matrix(21, COLS, isa, codes="u4", scales="half", group=32, zero=8)
    for start, stop in ((16, 21), (0, 8), (8, 16)):
        matrix.pack(start, codes[start:stop], scale[start:stop].view(np.uint16))
    got = np.stack([matrix.dequantize_row(row) for row in range(21)])
    assert np.array_equal(got, Groups(codes, 4, 32, scale, zero=8).dequantize())


def test_each_expert_of_a_stack_multiplies_as_a_matrix_of_its_own(isa: str):
    kind = Kind("u3", "super", 16)
    parts = tuple(random_groups(kind, 21, seed=seed) for seed in range(3))
    stack, x = pack(QTensor("w", (21, COLS), "GENERAL", parts), isa), random_rows(4)
    assert (stack.experts, stack.rows, stack.nbytes) == (3, 21, 3 * packed(parts[0], isa).nbytes)
    for number, part in enumerate(parts):
        one, alone = stack.expert(number), packed(part, isa)
        assert (one.experts, one.rows, one.nbytes) == (1, 21, alone.nbytes)
        assert np.array_equal(native.matmul(one, x, 1, isa), native.matmul(alone, x, 1, isa))


def test_stack_is_not_packed_nor_read_as_a_matrix(isa: str):
    stack = native.Matrix(8, 32, isa, codes="f32", experts=2)
    with pytest.raises(ValueError, match="expert by expert"):
        stack.pack_floats(0, np.zeros((8, 32), np.float32))
    with pytest.raises(ValueError, match="no such expert"):
        stack.expert(2)


@pytest.mark.parametrize("rows", ROWS)
def test_product_equals_the_integer_pipeline(kind: Kind, isa: str, rows: int):
    assert_equals_pipeline(random_groups(kind, rows), random_rows(MOST_TOKENS), isa)


@pytest.mark.parametrize("cols", [256, 2048, 2304, 4352])
def test_product_of_any_width_equals_the_integer_pipeline(kind: Kind, isa: str, cols: int):
    assert_equals_pipeline(random_groups(kind, 9, cols), random_rows(5, cols), isa)


@pytest.mark.parametrize("cols", [32, 64, 96, 576, 2080, 4128])
@pytest.mark.parametrize("codes", CODES)
@pytest.mark.parametrize("scales", ["half", "half_offset"])
def test_product_of_odd_widths_equals_the_integer_pipeline(codes: str, scales: str, cols: int, isa: str):
    kind = Kind(codes, scales, 32)
    assert_equals_pipeline(random_groups(kind, 9, cols), random_rows(5, cols), isa)


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
        least = -128 if kind.sub_bits == 8 else 15
        subs = None if groups.sub_scale is None else np.full_like(groups.sub_scale, least)
        assert_equals_pipeline(replace(groups, codes=full, sub_scale=subs), x, isa)


def test_extreme_codes_against_the_sign_of_the_activations_do_not_saturate(isa: str):
    kind, table = Kind("s8", "half", 32), Kind("t4", "half", 32)
    x = np.random.default_rng(3).choice([-1, 1], (4, COLS)).astype(np.float32)
    for low, high in ((-128, 127), (-127, 127), (-128, -128)):
        codes = np.where(x[:1] > 0, high, low).astype(np.int8).repeat(8, axis=0)
        assert_equals_pipeline(replace(random_groups(kind, 8), codes=codes), x, isa)
        numbers = np.where(codes == low, 0, 15).astype(np.uint8)
        assert_equals_pipeline(replace(random_groups(table, 8), codes=numbers), x, isa)


def test_product_is_close_to_that_of_float_weights(kind: Kind, isa: str):
    groups, x = random_groups(kind, 21), random_rows(7)
    out = native.matmul(packed(groups, isa), x, 1, isa)
    exact = x.astype(np.float64) @ groups.dequantize().astype(np.float64).T
    assert np.linalg.norm(out - exact) < 0.01 * np.linalg.norm(exact)


def test_bits_do_not_depend_on_the_number_of_rows(kind: Kind, isa: str):
    matrix, x = packed(random_groups(kind, 21), isa), random_rows(MOST_TOKENS)
    together = native.matmul(matrix, x, 1, isa)
    for n in range(1, MOST_TOKENS + 1):
        assert np.array_equal(native.matmul(matrix, x[:n], 1, isa), together[:n])
        assert np.array_equal(native.matmul(matrix, x[n - 1 : n], 1, isa), together[n - 1 : n])


def test_bits_do_not_depend_on_threads_or_panels(kind: Kind, isa: str):
    matrix, x = packed(random_groups(kind, 60), isa), random_rows(6)
    alone = native.matmul(matrix, x, 1, isa, chunk=1000)
    for threads, chunk in product((1, 2, 3), (1, 2, 3, 5)):
        assert np.array_equal(native.matmul(matrix, x, threads, isa, chunk=chunk), alone)


@pytest.mark.parametrize("other", ISAS[1:])
def test_every_instruction_set_gives_the_same_bits(kind: Kind, other: str):
    groups, x = random_groups(kind, 37, 2304), random_rows(MOST_TOKENS, 2304)
    scalar, fast = packed(groups, "scalar"), packed(groups, other)
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
    matrix = native.Matrix(21, cols, "scalar", codes=codes)
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
    assert native.matmul(packed(random_groups(kind, 9), isa), random_rows(0), 2, isa).shape == (0, 9)


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
    matrix, x = packed(random_groups(kind, 21), isa), random_rows(5)
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
        (8, 32, "u4", "half_zero", 32, 8, "zero point"),
        (8, 32, "u4", "half_offset", 32, 8, "zero point"),
        (8, 32, "u4", "half", 32, 129, "zero point"),
        (8, 32, "u4", "none", 32, 8, "have no scales"),
        (8, 32, "f32", "half", 32, 0, "have no scales"),
        (8, 32, "u7", "half", 32, 0, "u7"),
        (8, 32, "u4", "third", 32, 0, "third"),
    ],
)
def test_impossible_matrix_is_refused(
    rows: int, cols: int, codes: str, scales: str, group: int, zero: int, message: str
):
    with pytest.raises(ValueError, match=message):
        native.Matrix(rows, cols, "scalar", codes=codes, scales=scales, group=group, zero=zero)


@pytest.mark.parametrize(("start", "stop"), [(4, 12), (0, 12), (16, 24), (24, 29), (-8, 0)])
def test_rows_out_of_place_are_refused(start: int, stop: int, isa: str):
    matrix = native.Matrix(21, COLS, isa, codes="u4", scales="half", group=32, zero=8)
    groups = random_groups(Kind("u4", "half", 32), stop - start)
    with pytest.raises(ValueError, match="wrong matrix"):
        matrix.pack(start, groups.codes, groups.scale.view(np.uint16))


def test_arrays_of_the_wrong_shape_or_type_are_refused():
    def matrix(scales: str) -> native.Matrix:
        return native.Matrix(16, COLS, "scalar", codes="u4", scales=scales, group=32)

    groups = random_groups(Kind("u4", "half", 32), 16)
    codes, scale = groups.codes, groups.scale.view(np.uint16)
    for wrong in ((codes[:, :-32], scale), (codes, scale[:8]), (codes, scale[:, :1])):
        with pytest.raises(ValueError, match="wrong shape"):
            matrix("half").pack(0, *(np.ascontiguousarray(array) for array in wrong))
    for wrong in ((codes.view(np.int8), scale), (codes, groups.scale), (np.asfortranarray(codes), scale)):
        with pytest.raises(TypeError):
            matrix("half").pack(0, *wrong)
    for scales, missing in (("half_offset", "offsets"), ("half_zero", "zeros")):
        with pytest.raises(ValueError, match=missing):
            matrix(scales).pack(0, codes, scale)
    with pytest.raises(ValueError, match="missing sub scales"):
        matrix("super").pack(0, codes, scale[:, :2].copy())
    with pytest.raises(ValueError, match="unit"):
        native.Matrix(16, COLS, "scalar", codes="u4", scales="half", group=32, unit=0.5)
    with pytest.raises(ValueError, match="width"):
        native.matmul(matrix("half"), random_rows(2, 64), 1, "scalar")


@pytest.mark.skipif("avx512vnni" not in ISAS, reason="needs two kernels that order columns differently")
def test_matrix_packed_for_other_instructions_is_refused():
    kind = Kind("u4", "half", 32)
    matrix = packed(random_groups(kind, 8), "avx2")
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
matrices = [_native.Matrix(64, 4096, "scalar", codes="u4", scales="half", group=32) for _ in range(400)]
for matrix in matrices:
    matrix.pack(0, codes, scale)
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
