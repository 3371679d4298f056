"""Which architectures there are: each is a file of this package, imported when a model needs it."""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from corral.errors import UnsupportedModel
from corral.weights.source import ModelSource

if TYPE_CHECKING:  # the server process checks architectures too, and needs no array library for it
    from corral.models.graph import Graph
    from corral.models.program import Program


@dataclass(frozen=True, slots=True)
class Family:
    """A module with `PUBLISHED` and `build(source)`, and what a family's authors call the architecture."""

    module: str
    published: tuple[str, ...] = ()


FAMILIES: Mapping[str, Family] = {
    "llama": Family("corral.models.llama", ("LlamaForCausalLM", "MistralForCausalLM")),
    "mixtral": Family("corral.models.mixtral", ("MixtralForCausalLM",)),
    "qwen2": Family("corral.models.qwen2", ("Qwen2ForCausalLM",)),
    "qwen3": Family("corral.models.qwen3", ("Qwen3ForCausalLM",)),
    "gemma2": Family("corral.models.gemma2", ("Gemma2ForCausalLM",)),
    "qwen3moe": Family("corral.models.qwen3moe", ("Qwen3MoeForCausalLM",)),
    "stablelm": Family("corral.models.stablelm", ("StableLmForCausalLM",)),
    "olmo2": Family("corral.models.olmo2", ("Olmo2ForCausalLM",)),
    "gemma3": Family("corral.models.gemma3", ("Gemma3ForCausalLM", "Gemma3ForConditionalGeneration")),
}


def find_family(architecture: str) -> Family:
    """A row by either spelling of its name; UnsupportedModel, with what there is, if it is in no row."""
    for name, family in FAMILIES.items():
        if architecture in (name, *family.published):
            return family
    raise UnsupportedModel(
        f"the architecture '{architecture[:80]}' is not supported; supported: {', '.join(sorted(FAMILIES))}"
    )


def family_name(architecture: str) -> str:
    """What the family is called here, for an architecture by either spelling; itself if it has no row."""
    rows = (name for name, family in FAMILIES.items() if architecture in family.published)
    return next(rows, architecture)


def build_graph(source: ModelSource) -> "Graph":
    """The Graph of a model, by its architecture's family."""
    module = importlib.import_module(find_family(source.architecture).module)
    graph: Graph = module.build(source.named(module.PUBLISHED))
    return graph


def build_program(source: ModelSource) -> "Program":
    """The Program of a model, ready for an executor."""
    from corral.models.passes import narrow
    from corral.models.placement import place

    return place(narrow(build_graph(source)))
