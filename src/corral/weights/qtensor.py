"""The one quantised tensor: every format on disk is read as codes with group scales."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

CACHED_BYTES = 128 << 10  # of the file; decoded, about three times as many


@dataclass(frozen=True, slots=True)
class Groups:
    """Some rows of a QTensor, decoded to integers. G = columns of one scale.

    weight[m, k] = scale[m, k // G] * codes[m, k] + offset[m, k // G]
    With super-blocks (K-quants) scale and offset are themselves products, kept apart so that they stay exact:
    scale = super_scale[m, k // 256] * sub_scale[m, k // G], offset = -super_offset * sub_offset.
    """

    codes: NDArray[Any]  # [M, K] uint8, or int8 where bits == 8
    group: int  # columns of one scale: 16 or 32
    scale: NDArray[np.float16]  # [M, K / group], or [M, K / 256] with super-blocks
    offset: NDArray[np.float16] | None = None  # the same shape; None = `zero` says it all
    sub_scale: NDArray[Any] | None = None  # [M, K / group] uint8 or int8
    sub_offset: NDArray[np.uint8] | None = None  # [M, K / group]
    zero: int = 0  # offset = -scale * zero where there is no offset array

    # A damaged file may hold scales that are infinite or not numbers.
    @np.errstate(invalid="ignore", over="ignore")
    def dequantize(self) -> NDArray[np.float32]:
        """The float32 weights [M, K] that these codes stand for."""
        per_group = self.codes.shape[1] // self.group
        scale = self.scale.astype(np.float32)
        offset = None if self.offset is None else self.offset.astype(np.float32)
        if self.sub_scale is not None:
            scale = np.repeat(scale, per_group // scale.shape[1], axis=1) * self.sub_scale
            if offset is not None and self.sub_offset is not None:
                offset = -np.repeat(offset, per_group // offset.shape[1], axis=1) * self.sub_offset
        grouped = self.codes.reshape(len(self.codes), per_group, self.group).astype(np.float32) - self.zero
        grouped *= scale[:, :, None]
        if offset is not None:
            grouped += offset[:, :, None]
        return grouped.reshape(self.codes.shape)


@dataclass(frozen=True, slots=True)
class QTensor:
    """A matrix [rows, cols] (a vector is [1, cols]), decoded lazily by ranges of rows.

    bits is 4, 5, 6 or 8 for quantised types (decode gives Groups) and 16 or 32 for plain float (decode gives
    float32 rows, exactly the stored values). `raw` views the file: nothing is copied before decode.
    """

    name: str
    shape: tuple[int, int]
    type_name: str  # as users know it: Q4_1, BF16
    bits: int
    raw: NDArray[np.uint8]  # [rows, bytes of a row]
    decode_rows: Callable[[NDArray[np.uint8]], "Groups | NDArray[np.float32]"]

    @property
    def is_float(self) -> bool:
        """Whether decode gives float32 rows and not Groups."""
        return self.bits >= 16

    def decode(self, start: int = 0, stop: int | None = None) -> "Groups | NDArray[np.float32]":
        """Rows start to stop as Groups, or as float32 [M, K] for a plain float type."""
        return self.decode_rows(self.raw[start:stop])

    def ranges(self, start: int = 0, stop: int | None = None, multiple: int = 8) -> Iterator[tuple[int, int]]:
        """The rows in runs (multiples of so many) that decode within the processor's cache: much faster."""
        start, stop, _ = slice(start, stop).indices(self.shape[0])
        step = max(1, CACHED_BYTES // self.raw.shape[1] // multiple) * multiple
        for first in range(start, stop, step):
            yield first, min(first + step, stop)

    def dequantize(self, start: int = 0, stop: int | None = None) -> NDArray[np.float32]:
        """Rows start to stop as float32 [M, K]."""
        start, stop, _ = slice(start, stop).indices(self.shape[0])
        weights = np.empty((max(stop - start, 0), self.shape[1]), np.float32)
        for first, end in self.ranges(start, stop):
            rows = self.decode(first, end)
            weights[first - start : end - start] = rows.dequantize() if isinstance(rows, Groups) else rows
        return weights
