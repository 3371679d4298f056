"""The general form of quantised weights against its formula, weight by weight."""

from dataclasses import replace

import numpy as np
import pytest

from corral.weights.groups import Groups
from corral.weights.qtensor import QTensor

M, K = 5, 768
NF4 = np.linspace(-1, 1, 16, dtype=np.float32) ** 3


def general(bits: int, group: int, seed: int = 0, **changes) -> Groups:
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 1 << bits, (M, K), np.uint8)
    scale = rng.normal(0, 1, (M, K // group)).astype(np.float16)
    return replace(Groups(codes, bits, group, scale), **changes)


def numbers(shape: tuple[int, int], kind: type = np.float32) -> np.ndarray:
    return np.random.default_rng(9).normal(0, 1, shape).astype(kind)


def small(shape: tuple[int, int], low: int, high: int, kind: type) -> np.ndarray:
    return np.random.default_rng(8).integers(low, high, shape).astype(kind)


SUPER = {
    "scale": numbers((M, 3), np.float16),
    "offset": numbers((M, 3), np.float16),
    "sub_scale": small((M, K // 16), -128, 128, np.int8),
    "sub_offset": small((M, K // 16), 0, 256, np.uint8),
}
FORMS = {
    "one bit": general(1, 128, zero=0),
    "zero a group": general(4, 128, zero=small((M, K // 128), 0, 16, np.uint8)),
    "row scale": general(8, K, scale=numbers((M, 1)), zero=128),
    "signed": general(8, 64, codes=small((M, K), -128, 128, np.int8)),
    "offset": general(3, 256, offset=numbers((M, 3), np.float16)),
    "float table": general(4, 64, table=NF4, scale=numbers((M, K // 64))),
    "whole table and unit": general(3, 32, table=np.arange(-40, 40, 10, dtype=np.int8), unit=0.125),
    "super-blocks": general(2, 16, **SUPER, unit=0.25),
}


def weight_at(form: Groups, row: int, col: int) -> float:
    """The formula in float64."""

    def of(array: np.ndarray | None) -> float:
        return 1.0 if array is None else float(array[row, col * array.shape[1] // K])

    zero = form.zero if isinstance(form.zero, int) else of(form.zero)
    code = form.codes[row, col]
    value = float(code if form.table is None else form.table[code]) - zero
    scale, offset = of(form.scale), 0.0 if form.offset is None else of(form.offset)
    if form.sub_scale is not None:
        scale, offset = scale * of(form.sub_scale), -offset * of(form.sub_offset)
    return form.unit * (scale * value + offset)


@pytest.mark.parametrize("name", FORMS)
def test_dequantised_weights_are_those_of_the_formula(name: str) -> None:
    form = FORMS[name]
    expected = [[weight_at(form, row, col) for col in range(K)] for row in range(M)]
    np.testing.assert_allclose(form.dequantize(), expected, rtol=1e-6, atol=1e-4)


@pytest.mark.parametrize("name", FORMS)
def test_cut_form_has_the_weights_of_its_rows_and_columns(name: str) -> None:
    form = FORMS[name]
    tensor = QTensor("w", (M, K), "GENERAL", (form, form))
    start, stop = (0, K) if form.group == K else (256, 768)
    cut = tensor.rows_between(1, 4).columns_between(start, stop)
    assert (cut.shape, cut.experts, cut.bits, cut.is_float) == ((3, stop - start), 2, form.bits, False)
    np.testing.assert_array_equal(cut.dequantize(), np.stack([form.dequantize()[1:4, start:stop]] * 2))


def test_form_cannot_be_cut_inside_a_group() -> None:
    with pytest.raises(ValueError, match="no cut from column 64 to 768"):
        FORMS["zero a group"].columns_between(64, 768)


def test_form_takes_the_bytes_of_its_arrays() -> None:
    form = FORMS["zero a group"]
    assert form.nbytes == M * K + M * K // 128 * (2 + 1)


def test_infinite_scale_of_a_damaged_file_gives_nan_without_a_warning() -> None:
    groups = Groups(np.zeros((1, 32), np.uint8), bits=4, group=32, scale=np.array([[np.inf]], np.float16))
    assert np.isnan(groups.dequantize()).all()
