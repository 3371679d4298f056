"""Which architectures there are; each is a file with a `build(gguf)`, imported when a model needs it."""

import importlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from corral.errors import UnsupportedModel
from corral.models.config import read_architecture
from corral.weights.gguf import GGUFFile

if TYPE_CHECKING:  # the server process checks architectures too, and needs no array library for it
    from corral.models.program import Program

ARCHITECTURES = {
    "llama": "corral.models.llama:build",
    "gemma3": "corral.models.gemma3:build",
}


def check_architecture(metadata: Mapping[str, Any]) -> str:
    """A model's `general.architecture`; UnsupportedModel, with what there is, unless it is in the table."""
    name = read_architecture(metadata)
    if name not in ARCHITECTURES:
        raise UnsupportedModel(
            f"the architecture '{name[:80]}' is not supported; supported: {', '.join(sorted(ARCHITECTURES))}"
        )
    return name


def build_program(gguf: GGUFFile) -> "Program":
    """The Program of a model file, by its `general.architecture`."""
    name = check_architecture(gguf.metadata)
    module, function = ARCHITECTURES[name].split(":")
    build: Callable[[GGUFFile], Program] = getattr(importlib.import_module(module), function)
    return build(gguf)
