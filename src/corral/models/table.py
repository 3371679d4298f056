"""Which architectures there are; each is a file with a `build(gguf)`, imported when a model needs it."""

import importlib
from collections.abc import Callable

from corral.errors import UnsupportedModel
from corral.models.config import read_architecture
from corral.models.program import Program
from corral.weights.gguf import GGUFFile

ARCHITECTURES = {
    "llama": "corral.models.llama:build",
    "gemma3": "corral.models.gemma3:build",
}


def build_program(gguf: GGUFFile) -> Program:
    """The Program of a model file, by its `general.architecture`."""
    name = read_architecture(gguf.metadata)
    if name not in ARCHITECTURES:
        raise UnsupportedModel(
            f"the architecture '{name[:80]}' is not supported; supported: {', '.join(sorted(ARCHITECTURES))}"
        )
    module, function = ARCHITECTURES[name].split(":")
    build: Callable[[GGUFFile], Program] = getattr(importlib.import_module(module), function)
    return build(gguf)
