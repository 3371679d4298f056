"""Tensors of a model's files as QTensors: views on the files, decoded when asked."""

from collections.abc import Sequence

import numpy as np

from corral.errors import UnsupportedModel
from corral.weights.formats import FORMATS
from corral.weights.gguf import GGUFFile
from corral.weights.gguf import TensorInfo as Place
from corral.weights.qtensor import QTensor
from corral.weights.source import TensorInfo

MOST_EXPERTS = 4096


def load_tensor(file: GGUFFile, name: str) -> QTensor:
    """The named tensor; CorruptModel if it is missing, UnsupportedModel if it cannot be run."""
    data = file.tensor_bytes(name)
    info = file.tensors[name]
    size = len(data) // info.shape[0] if len(info.shape) == 3 else len(data)
    matrices = [data[start : start + size] for start in range(0, len(data), size)]
    return view_tensor(file.path.name, info, matrices)


def view_tensor(where: str, info: TensorInfo | Place, matrices: Sequence[memoryview]) -> QTensor:
    """The tensor whose matrix, or each expert's, has these bytes; `where` names its file in errors."""
    if info.type not in FORMATS:
        raise UnsupportedModel(
            f"{where}: tensor '{info.name}' has type {info.type}, which this version cannot run; "
            f"it can run {', '.join(FORMATS)}"
        )
    rank = len(info.shape)
    if not 1 <= rank <= 3 or 0 in info.shape or len(matrices) > MOST_EXPERTS:
        raise UnsupportedModel(
            f"{where}: tensor '{info.name}' of shape {list(info.shape)} is no vector, no matrix and no stack "
            f"of at most {MOST_EXPERTS} matrices"
        )
    rows, cols = (1, *info.shape)[-2:]
    parts = tuple(np.frombuffer(matrix, np.uint8).reshape(rows, -1) for matrix in matrices)
    return QTensor(info.name, (rows, cols), info.type, parts)
