"""Tiny checkpoints seen without corral: read by the `gguf` package, changed, and written again."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np

import gguf_files

Weights = dict[str, np.ndarray]


def read_weights(path: Path) -> Weights:
    """Every tensor as float64 [rows, cols], or [cols]."""
    return {
        tensor.name: gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float64)
        for tensor in gguf.GGUFReader(path).tensors
    }


def read_metadata(path: Path) -> dict[str, Any]:
    fields = gguf.GGUFReader(path).fields
    return {key: field.contents() for key, field in fields.items() if not key.startswith("GGUF.")}


def rewrite(
    path: Path,
    tensors: Mapping[str, np.ndarray | gguf_files.Encoded | None] | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> Path:
    """Write a float32 copy in which these tensors and keys are changed, added or (None) left out."""
    kept = {name: weight.astype(np.float32) for name, weight in read_weights(path).items()}
    changed = {**kept, **(tensors or {})}
    values = {**read_metadata(path), **(metadata or {})}
    return gguf_files.write_gguf(
        path.with_suffix(".changed.gguf"),
        {key: value for key, value in values.items() if value is not None},
        {name: tensor for name, tensor in changed.items() if tensor is not None},
    )
