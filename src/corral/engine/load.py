"""From a model's files to an Engine that is ready to run it, in two halves.

`open_model` builds the Program and tells its need; `OpenModel.load` packs the weights once there is memory.
"""

import importlib
from dataclasses import dataclass
from typing import Any, Protocol

from corral.engine.engine import Engine, EngineOptions
from corral.engine.protocol import EngineSpec, Need, Ready
from corral.errors import EngineFailed, OutOfMemory
from corral.executors.batch import Executor
from corral.models.program import Program
from corral.models.table import build_program
from corral.types import BLOCK_SIZE, DeviceMemory
from corral.weights.open import open_source
from corral.weights.source import ModelSource

LEAST_CONTEXT = 2048  # tokens: with less KV memory a model is refused rather than crippled

# Class, and which fields of a spec it is given beside the Program, num_blocks and max_tokens.
EXECUTORS: dict[str, tuple[str, tuple[str, ...]]] = {
    "native": ("corral.executors.native:NativeExecutor", ("max_sequences", "threads", "isa")),
    "reference": ("corral.executors.reference:ReferenceExecutor", ()),
}


def import_ahead() -> None:
    """Import what nearly every load needs, while there is nothing else to do."""
    for module in ("corral.executors.native", "corral.models.blocks", "corral.models.placement"):
        importlib.import_module(module)


class Loadable(Executor, Protocol):
    """An executor that tells its memory, by device."""

    memory: dict[str, DeviceMemory]  # what it has taken

    @staticmethod
    def memory_needed(program: Program, max_tokens: int) -> dict[str, DeviceMemory]:
        """What an executor of this Program will take, without its KV cache."""
        ...


@dataclass(frozen=True, slots=True)
class OpenModel:
    """A model whose Program is built and whose weights are still where its files are."""

    spec: EngineSpec
    source: ModelSource
    program: Program
    executor: type[Loadable]

    @property
    def need(self) -> Need:
        """What the model will take."""
        longest, chunk, cache = self.program.context_length, self.spec.batch_tokens, self.program.cache
        context = min(self.spec.context_length or longest, longest)
        return Need(
            memory=self.executor.memory_needed(self.program, chunk),
            kv_context=cache.bytes_needed(context, chunk),
            kv_least=cache.bytes_needed(min(context, LEAST_CONTEXT), chunk),
        )

    def load(self, kv_bytes: int) -> tuple[Engine, Ready]:
        """Pack the weights, beside a KV cache of so many bytes; OutOfMemory if these are too few."""
        program, spec = self.program, self.spec
        executor = self._make_executor(self._num_blocks(kv_bytes))
        options = EngineOptions(
            context_length=program.context_length,
            vocab_size=program.vocab_size,
            batch_tokens=spec.batch_tokens,
            max_sequences=spec.max_sequences,
            drafts=spec.drafts,
        )
        engine = Engine(executor, options)
        ready = Ready(
            context_length=program.context_length,
            vocab_size=program.vocab_size,
            num_blocks=sum(executor.num_blocks),
            block_size=BLOCK_SIZE,
            kv_tokens=engine.limits.kv_tokens,
            memory=executor.memory,
        )
        return engine, ready

    def _num_blocks(self, kv_bytes: int) -> tuple[int, ...]:
        cache, chunk = self.program.cache, self.spec.batch_tokens
        least = cache.bytes_needed(2 * BLOCK_SIZE, chunk)
        if kv_bytes < least:
            raise OutOfMemory(
                f"{2 * BLOCK_SIZE} tokens of this model's KV cache take {least} bytes, but it was given "
                f"{kv_bytes}; set CORRAL_KV_CACHE to a larger size"
            )
        return cache.divide(kv_bytes, self.program.context_length, chunk)

    def _make_executor(self, num_blocks: tuple[int, ...]) -> Loadable:
        spec = self.spec
        options: dict[str, Any] = {field: getattr(spec, field) for field in EXECUTORS[spec.executor][1]}
        if spec.executor == "native":
            options["on_packed"] = self.source.release
        make: Any = self.executor
        executor: Loadable = make(
            self.program, num_blocks=num_blocks, max_tokens=spec.batch_tokens, **options
        )
        return executor


def open_model(spec: EngineSpec) -> OpenModel:
    """Read what the model is; raises what is wrong with it. Takes no memory to speak of."""
    if spec.executor not in EXECUTORS:
        raise EngineFailed(f"no executor '{spec.executor}'; there are: {', '.join(EXECUTORS)}")
    module, name = EXECUTORS[spec.executor][0].split(":")
    source = open_source(spec.path)
    return OpenModel(spec, source, build_program(source), getattr(importlib.import_module(module), name))
