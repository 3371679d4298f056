"""Weights as whole-number codes with scales: the general form that every quantised format is decoded to."""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, eq=False)
class Groups:
    """Some rows of a quantised matrix, M rows of K columns; `group` columns of a row share a scale.

    weight = unit * (scale * (value - zero) + offset), where value is the code, or table[code] where there is
    a table. With super-blocks (sub_scale is there) scale and offset are themselves products, kept apart so
    that they stay exact: scale * sub_scale and -offset * sub_offset.
    """

    codes: NDArray[Any]  # [M, K] uint8 below 2 ** bits, or int8
    bits: int  # of a code: 1 to 8
    group: int  # 16, 32, 64, 128, 256 ... columns, up to a whole row
    scale: NDArray[np.floating[Any]]  # [M, K / group]; with super-blocks [M, S], of K / S columns each
    offset: NDArray[np.floating[Any]] | None = None  # the same shape and type
    sub_scale: NDArray[Any] | None = None  # [M, K / group] uint8 or int8
    sub_offset: NDArray[Any] | None = None  # [M, K / group] uint8
    sub_bits: int = 8  # sub scales and offsets that are uint8 are below 2 ** sub_bits
    zero: int | NDArray[Any] = 0  # of all, or [M, K / group] uint8
    table: NDArray[Any] | None = None  # [2 ** bits] int8 or float32
    unit: float = 1.0  # a constant of the format

    @property
    def nbytes(self) -> int:
        """Bytes of all the arrays."""
        arrays = (getattr(self, field.name) for field in fields(self))
        return sum(array.nbytes for array in arrays if isinstance(array, np.ndarray))

    # A damaged file may hold scales that are infinite or not numbers.
    @np.errstate(invalid="ignore", over="ignore")
    def dequantize(self) -> NDArray[np.float32]:
        """The float32 weights [M, K] that these codes stand for."""
        groups = self.codes.shape[1] // self.group
        scale, offset = self._spread(self.scale), self._spread(self.offset)
        assert scale is not None
        if self.sub_scale is not None:
            scale = scale * self.sub_scale
            if offset is not None and self.sub_offset is not None:
                offset = -offset * self.sub_offset
        values = self.codes if self.table is None else self.table[self.codes]
        weights = values.reshape(len(values), groups, self.group).astype(np.float32)
        weights -= self.zero if isinstance(self.zero, int) else self.zero[:, :, None]
        weights *= scale[:, :, None]
        if offset is not None:
            weights += offset[:, :, None]
        return weights.reshape(self.codes.shape)

    def _spread(self, numbers: NDArray[np.floating[Any]] | None) -> NDArray[np.float32] | None:
        """[M, S] scales or offsets in whole units as [M, K / group]."""
        if numbers is None:
            return None
        wide = numbers.astype(np.float32) * np.float32(self.unit)
        return np.repeat(wide, self.codes.shape[1] // self.group // wide.shape[1], axis=1)

    def rows_between(self, start: int, stop: int | None) -> "Groups":
        """Rows start to stop, as a view."""
        return self._cut(lambda array: array[start:stop])

    def columns_between(self, start: int, stop: int) -> "Groups":
        """Columns start to stop, as a view; ValueError where they cut a group or a super-block."""
        cols = self.codes.shape[1]

        def cut(array: NDArray[Any]) -> NDArray[Any]:
            edges = start * array.shape[1], stop * array.shape[1]
            if any(edge % cols for edge in edges):
                raise ValueError(f"no cut from column {start} to {stop}: scales are shared across it")
            return array[:, edges[0] // cols : edges[1] // cols]

        return self._cut(cut)

    def _cut(self, cut: Callable[[NDArray[Any]], NDArray[Any]]) -> "Groups":
        """These groups with every array but the table cut."""
        values = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "table"}
        changed: dict[str, Any] = {name: cut(a) for name, a in values.items() if isinstance(a, np.ndarray)}
        return replace(self, **changed)
