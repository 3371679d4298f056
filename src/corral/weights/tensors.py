"""Tensors of a GGUF file as QTensors: views on the file, decoded when asked."""

import numpy as np

from corral.errors import UnsupportedModel
from corral.weights.formats import FORMATS
from corral.weights.gguf import GGUFFile
from corral.weights.qtensor import QTensor

MOST_EXPERTS = 4096


def load_tensor(file: GGUFFile, name: str) -> QTensor:
    """The named tensor; CorruptModel if missing, UnsupportedModel if its type or shape cannot be run."""
    data = file.tensor_bytes(name)
    info = file.tensors[name]
    if info.type not in FORMATS:
        raise UnsupportedModel(
            f"{file.path.name}: tensor '{name}' has type {info.type}, which this version cannot run; "
            f"it can run {', '.join(FORMATS)}"
        )
    if len(info.shape) > 3 or (len(info.shape) == 3 and info.shape[0] > MOST_EXPERTS):
        raise UnsupportedModel(
            f"{file.path.name}: tensor '{name}' of shape {list(info.shape)} is no vector, no matrix "
            f"and no stack of at most {MOST_EXPERTS} matrices"
        )
    experts, rows, cols = (1, 1, *info.shape)[-3:]
    parts = np.frombuffer(data, np.uint8).reshape(experts, rows, -1)
    return QTensor(name, (rows, cols), info.type, tuple(parts))
