"""The one quantised tensor: a matrix of any format as plain data, decoded when asked."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from corral.weights.formats import FORMATS, form_of
from corral.weights.groups import Groups

CACHED_BYTES = 128 << 10  # of the file; decoded, about three times as many

Part = NDArray[np.uint8] | Groups


def _rows(part: Part, start: int, stop: int | None) -> Part:
    return part.rows_between(start, stop) if isinstance(part, Groups) else part[start:stop]


@dataclass(frozen=True, slots=True, eq=False)
class QTensor:
    """A matrix [rows, cols] (a vector is [1, cols]), or those of E experts: encoded, decoded when asked.

    `parts` has an element for each expert, so one for an ordinary matrix: uint8 [rows, bytes of a row], rows
    of blocks of the type `type_name` (weights/formats.py), or the general form itself, for a format that is
    not made of blocks. Arrays may view the model's files.
    """

    name: str
    shape: tuple[int, int]  # (rows, cols) of one matrix
    type_name: str  # as users know it: Q4_1, BF16
    parts: tuple[Part, ...]

    @property
    def experts(self) -> int:
        """How many matrices of this shape there are: 1 for an ordinary matrix."""
        return len(self.parts)

    @property
    def form(self) -> Groups | NDArray[np.float32]:
        """No rows, decoded: what kinds of numbers those of all rows are."""
        part = self.parts[0]
        return part.rows_between(0, 0) if isinstance(part, Groups) else form_of(self.type_name)

    @property
    def is_float(self) -> bool:
        """Whether `decode` gives float32 rows, exactly the stored values, and not Groups."""
        return not isinstance(self.form, Groups)

    @property
    def bits(self) -> int:
        """Bits of a code, or of a plain float."""
        form = self.form
        return form.bits if isinstance(form, Groups) else 8 * FORMATS[self.type_name].layout.itemsize

    @property
    def nbytes(self) -> int:
        """Bytes of all parts as the files have them."""
        return sum(part.nbytes for part in self.parts)

    def expert(self, number: int) -> "QTensor":
        """The ordinary matrix of one expert."""
        return replace(self, parts=(self.parts[number],))

    def experts_between(self, start: int, stop: int) -> "QTensor":
        """Experts start to stop of a stack, as a view; ValueError where there are no such experts."""
        if not 0 <= start < stop <= self.experts:
            raise ValueError(f"'{self.name}' has {self.experts} experts: none from {start} to {stop}")
        return replace(self, parts=self.parts[start:stop])

    def rows_between(self, start: int, stop: int) -> "QTensor":
        """Rows start to stop (of every expert), as a view; ValueError where there are no such rows."""
        rows, cols = self.shape
        if not 0 <= start < stop <= rows:
            raise ValueError(f"'{self.name}' has {rows} rows: no rows from {start} to {stop}")
        return replace(
            self, shape=(stop - start, cols), parts=tuple(_rows(part, start, stop) for part in self.parts)
        )

    def columns_between(self, start: int, stop: int) -> "QTensor":
        """Columns start to stop (of every expert), as a view; ValueError where they are not whole blocks."""
        rows, cols = self.shape
        if not 0 <= start < stop <= cols:
            raise ValueError(f"'{self.name}' has {cols} columns: no columns from {start} to {stop}")
        parts = tuple(self._columns(part, start, stop) for part in self.parts)
        return replace(self, shape=(rows, stop - start), parts=parts)

    def _columns(self, part: Part, start: int, stop: int) -> Part:
        if isinstance(part, Groups):
            return part.columns_between(start, stop)
        block, size = FORMATS[self.type_name].block, FORMATS[self.type_name].layout.itemsize
        if start % block or stop % block:
            raise ValueError(f"'{self.name}' has blocks of {block} columns: no cut from {start} to {stop}")
        return part[:, start // block * size : stop // block * size]

    def decode(self, start: int = 0, stop: int | None = None) -> Groups | NDArray[np.float32]:
        """Rows start to stop of an ordinary matrix as Groups, or as float32 [M, K] for a plain float type."""
        (part,) = self.parts
        rows = _rows(part, start, stop)
        return rows if isinstance(rows, Groups) else FORMATS[self.type_name].decode(rows)

    def ranges(self, start: int = 0, stop: int | None = None, multiple: int = 8) -> Iterator[tuple[int, int]]:
        """The rows in ranges of a multiple of `multiple` rows that decode within the processor's cache."""
        start, stop, _ = slice(start, stop).indices(self.shape[0])
        step = max(1, CACHED_BYTES * self.shape[0] // self.parts[0].nbytes // multiple) * multiple
        for first in range(start, stop, step):
            yield first, min(first + step, stop)

    def dequantize(self, start: int = 0, stop: int | None = None) -> NDArray[np.float32]:
        """Rows start to stop as float32 [M, K], of a stack [E, M, K]."""
        if self.experts > 1:
            return np.stack([self.expert(e).dequantize(start, stop) for e in range(self.experts)])
        start, stop, _ = slice(start, stop).indices(self.shape[0])
        weights = np.empty((max(stop - start, 0), self.shape[1]), np.float32)
        for first, end in self.ranges(start, stop):
            rows = self.decode(first, end)
            weights[first - start : end - start] = rows.dequantize() if isinstance(rows, Groups) else rows
        return weights
