"""How a QTensor becomes a matrix of the native module: as codes where a layout holds its numbers exactly.

A layout has codes of 2 to 6 bits, of 4 with a table of whole numbers, or whole numbers of 8; groups of 16 or
32 columns; and scales of half precision, of groups or of super-blocks. Larger groups repeat their numbers.
A tensor that no layout holds exactly (its table has fractions, its scales need more than half precision)
becomes plain floats: of 16 bits, rounded by at most 2^-11 of a weight, or of 32 where half precision lacks
the range.
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from corral import _native
from corral.weights.groups import Groups
from corral.weights.qtensor import QTensor

PANEL_ROWS = 8  # rows are packed in multiples of it
BLOCK, SUPER = 32, 256  # columns
FILE_TYPES = frozenset(_native.file_types())  # whose blocks the native module reads itself
HALF_RANGE = 2.0**-14, 65504.0  # of normal numbers


class Inexact(Exception):
    """No layout holds some numbers exactly."""


def pack(tensor: QTensor, isa: str) -> _native.Matrix:
    """The tensor's matrix, or the stack of its experts' matrices, for an instruction set's kernels."""
    form = tensor.form
    if not isinstance(form, Groups):
        return _pack_file_floats(tensor, isa)
    try:
        return _pack_codes(tensor, fit(form), isa)
    except Inexact:
        return _pack_dequantized(tensor, isa)


def packed_bytes(tensors: Iterable[QTensor]) -> int:
    """What these take when packed: panels of 8 rows, each as large as the first one of its kind."""
    panels: dict[tuple[str, int], int] = {}  # by type and columns
    total = 0
    for tensor in tensors:
        rows, cols = tensor.shape
        kind = tensor.type_name, cols
        if kind not in panels:
            panels[kind] = pack(tensor.expert(0).rows_between(0, min(rows, PANEL_ROWS)), "auto").nbytes
        total += panels[kind] * -(-rows // PANEL_ROWS) * tensor.experts
    return total


def _pack_codes(tensor: QTensor, form: Groups, isa: str) -> _native.Matrix:
    matrix = _native.Matrix(
        *tensor.shape,
        isa,
        codes=_codes_name(form),
        scales=_scales_name(form),
        group=form.group,
        zero=form.zero if isinstance(form.zero, int) else 0,
        unit=form.unit,
        table=form.table,
        experts=tensor.experts,
    )
    for number, part in enumerate(tensor.parts):
        one, expert = matrix.expert(number), tensor.expert(number)
        if tensor.type_name in FILE_TYPES and not isinstance(part, Groups):
            one.pack_file(part, tensor.type_name)
            continue
        for start, stop in expert.ranges(multiple=PANEL_ROWS):
            rows = expert.decode(start, stop)
            assert isinstance(rows, Groups)
            _pack_rows(one, start, fit(rows))
    return matrix


def _pack_rows(matrix: _native.Matrix, start: int, rows: Groups) -> None:
    sub_scale, sub_offset = rows.sub_scale, rows.sub_offset
    if sub_scale is not None and sub_offset is not None and rows.sub_bits <= 4:
        sub_scale, sub_offset = sub_scale | sub_offset << 4, None
    matrix.pack(
        start,
        _bits(rows.codes, np.uint8),
        _bits(rows.scale, np.uint16),
        None if rows.offset is None else _bits(rows.offset, np.uint16),
        None if sub_scale is None else _bits(sub_scale, np.uint8),
        None if sub_offset is None else _bits(sub_offset, np.uint8),
        None if isinstance(rows.zero, int) else _bits(rows.zero, np.uint8),
    )


def _bits(array: NDArray[Any], kind: type[Any]) -> NDArray[Any]:
    return np.ascontiguousarray(array).view(kind)


def _pack_file_floats(tensor: QTensor, isa: str) -> _native.Matrix:
    matrix = _native.Matrix(*tensor.shape, isa, codes=tensor.type_name.lower(), experts=tensor.experts)
    for number, part in enumerate(tensor.parts):
        assert not isinstance(part, Groups)
        matrix.expert(number).pack_raw_floats(part)
    return matrix


def _pack_dequantized(tensor: QTensor, isa: str) -> _native.Matrix:
    largest = max(float(np.abs(weights).max()) for _, _, weights in _dequantized(tensor))
    codes = "f16" if HALF_RANGE[0] <= largest <= HALF_RANGE[1] else "f32"
    matrix = _native.Matrix(*tensor.shape, isa, codes=codes, experts=tensor.experts)
    for number, start, weights in _dequantized(tensor):
        matrix.expert(number).pack_floats(start, weights)
    return matrix


def _dequantized(tensor: QTensor) -> Iterator[tuple[int, int, NDArray[np.float32]]]:
    """(expert, first row, some rows of weights) for all the tensor."""
    for number in range(tensor.experts):
        expert = tensor.expert(number)
        for start, stop in expert.ranges(multiple=PANEL_ROWS):
            yield number, start, expert.dequantize(start, stop)


def _codes_name(fitted: Groups) -> str:
    if fitted.table is not None:
        return "t4"
    return "s8" if fitted.codes.dtype == np.int8 else f"u{fitted.bits}"


def _scales_name(fitted: Groups) -> str:
    has_offset = fitted.offset is not None
    if fitted.sub_scale is not None:
        return ("super_nibbles" if fitted.sub_bits <= 4 else "super_offset") if has_offset else "super"
    return "half_offset" if has_offset else "half" if isinstance(fitted.zero, int) else "half_zero"


def fit(groups: Groups) -> Groups:
    """The same weights by the numbers of a layout; raises Inexact where no layout has them."""
    fitted = _with_halves(_with_small_groups(_with_codes(groups)))
    one_zero, is_super = isinstance(fitted.zero, int), fitted.sub_scale is not None
    has_offset = fitted.offset is not None
    if ((is_super or has_offset) and not one_zero) or (has_offset and fitted.zero != 0):
        raise Inexact
    if is_super and has_offset != (fitted.sub_offset is not None):
        raise Inexact
    return fitted


def _with_codes(groups: Groups) -> Groups:
    """Codes that a layout has: a byte with a sign for 7 bits or more and for larger tables."""
    codes, bits, zero, table = groups.codes, groups.bits, groups.zero, groups.table
    if table is not None:
        if table.dtype != np.int8:
            raise Inexact
        if len(table) > 16:
            return replace(groups, codes=table[codes], bits=8, table=None)
        return replace(groups, bits=4, table=np.resize(table, 16))
    if bits < 7 or codes.dtype == np.int8:
        return replace(groups, bits=max(bits, 2))
    half = 1 << (bits - 1)
    moved = zero - half if isinstance(zero, int) else (zero.astype(np.int16) - half).astype(np.int8)
    return replace(groups, codes=(codes - np.uint8(half)).view(np.int8), bits=8, zero=moved)


def _with_small_groups(groups: Groups) -> Groups:
    """Groups of 32 or 16 columns, a scale for each or for every 256 columns; larger ones are repeated."""
    cols, is_super = groups.codes.shape[1], groups.sub_scale is not None
    group = BLOCK if groups.group % BLOCK == 0 else BLOCK // 2
    if groups.group % group or cols % (SUPER if is_super else BLOCK):
        raise Inexact
    scales, subs = cols // (SUPER if is_super else group), cols // group
    changed: dict[str, Any] = {}
    counts = {"scale": scales, "offset": scales, "sub_scale": subs, "sub_offset": subs, "zero": subs}
    for name, count in counts.items():
        numbers = getattr(groups, name)
        if isinstance(numbers, np.ndarray):
            if count % numbers.shape[1]:
                raise Inexact
            if count > numbers.shape[1]:
                changed[name] = np.repeat(numbers, count // numbers.shape[1], axis=1)
    return replace(groups, group=group, **changed)


def _with_halves(groups: Groups) -> Groups:
    """Scales and offsets of half precision; without super-blocks the unit goes into them."""
    unit = groups.unit if groups.sub_scale is None else 1.0
    sub_scale = groups.sub_scale
    if sub_scale is not None and groups.sub_bits == 8 and sub_scale.max(initial=0) > 127:
        raise Inexact
    if not isinstance(groups.zero, int) and groups.zero.max(initial=0) > 127:
        raise Inexact
    return replace(
        groups,
        scale=_halves(groups.scale, unit),
        offset=None if groups.offset is None else _halves(groups.offset, unit),
        sub_bits=8 if sub_scale is not None and sub_scale.dtype == np.int8 else groups.sub_bits,
        unit=groups.unit if sub_scale is not None else 1.0,
    )


@np.errstate(over="ignore")
def _halves(numbers: NDArray[np.floating[Any]], unit: float) -> NDArray[np.float16]:
    if numbers.dtype == np.float16 and unit == 1:
        return numbers
    wide = numbers.astype(np.float32) * np.float32(unit)
    halves = wide.astype(np.float16)
    if not np.array_equal(halves, wide, equal_nan=True):
        raise Inexact
    return halves
