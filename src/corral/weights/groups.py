"""Weights as codes with group scales: the form that every quantised format is decoded to."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


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
