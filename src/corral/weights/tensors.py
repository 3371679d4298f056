"""Tensors of a GGUF file as QTensors: views on the file, decoded when asked."""

import numpy as np

from corral.errors import UnsupportedModel
from corral.weights.formats import FORMATS
from corral.weights.gguf import GGUFFile
from corral.weights.qtensor import QTensor


def load_tensor(file: GGUFFile, name: str) -> QTensor:
    """The named tensor; CorruptModel if it is missing, UnsupportedModel if its type or rank cannot be run."""
    data = file.tensor_bytes(name)
    info = file.tensors[name]
    row = FORMATS.get(info.type)
    if row is None:
        raise UnsupportedModel(
            f"{file.path.name}: tensor '{name}' has type {info.type}, which this version cannot run; "
            f"it can run {', '.join(FORMATS)}"
        )
    if len(info.shape) > 2:
        raise UnsupportedModel(
            f"{file.path.name}: tensor '{name}' has {len(info.shape)} dimensions, not 1 or 2"
        )
    rows, cols = info.shape if len(info.shape) == 2 else (1, info.shape[0])
    raw = np.frombuffer(data, np.uint8).reshape(rows, -1)
    return QTensor(name, (rows, cols), info.type, row.bits, raw, row.decode)
