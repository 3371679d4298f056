"""A ModelSource of fields and float32 arrays in memory."""

from collections.abc import Mapping
from typing import Any, Self

import numpy as np

from corral.weights.fields import Fields
from corral.weights.qtensor import QTensor
from corral.weights.source import Published, TensorInfo
from op_programs import float_tensor


class MemorySource:
    """Its names are the canonical ones."""

    name = "memory"

    def __init__(
        self, architecture: str, fields: Mapping[str, Any], tensors: Mapping[str, np.ndarray] | None = None
    ):
        self.architecture, self.fields = architecture, Fields(fields)
        self.arrays = {name: np.asarray(array, np.float32) for name, array in (tensors or {}).items()}
        self.tensors: Mapping[str, TensorInfo] = {
            name: TensorInfo(name, array.shape, "F32", array.nbytes) for name, array in self.arrays.items()
        }

    @property
    def size(self) -> int:
        return sum(array.nbytes for array in self.arrays.values())

    def named(self, published: Published) -> Self:
        return self

    def tensor(self, name: str) -> QTensor:
        return float_tensor(self.arrays[name], name)

    def release(self, name: str) -> None:
        pass

    def close(self) -> None:
        pass
