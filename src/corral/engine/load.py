"""From a model's files to an Engine that is ready to run it."""

import importlib
import time
from typing import Any

from corral.engine.engine import Engine, EngineOptions
from corral.engine.protocol import EngineSpec, Ready
from corral.errors import EngineFailed, OutOfMemory
from corral.executors.batch import Executor
from corral.models.program import Program
from corral.models.table import build_program
from corral.types import BLOCK_SIZE
from corral.weights.open import open_source
from corral.weights.source import ModelSource

# Class, and which fields of a spec it is given beside the Program, num_blocks and max_tokens.
EXECUTORS: dict[str, tuple[str, tuple[str, ...]]] = {
    "native": ("corral.executors.native:NativeExecutor", ("max_sequences", "threads", "isa")),
    "reference": ("corral.executors.reference:ReferenceExecutor", ()),
}


def import_ahead() -> None:
    """Import what nearly every load needs, while there is nothing else to do."""
    for module in ("corral.executors.native", "corral.models.blocks", "corral.models.placement"):
        importlib.import_module(module)


def load(spec: EngineSpec) -> tuple[Engine, Ready]:
    """Load the model that a spec names; raises what is wrong with it."""
    begun = time.monotonic_ns()
    source = open_source(spec.path)
    program = build_program(source)
    num_blocks = kv_blocks(program, spec)
    executor = make_executor(program, spec, num_blocks, source)
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
        num_blocks=sum(num_blocks),
        block_size=BLOCK_SIZE,
        kv_tokens=engine.limits.kv_tokens,
        weight_bytes=getattr(executor, "weight_bytes", 0) or sum(w.nbytes for w in program.weights),
        kv_bytes=program.cache.bytes_of(num_blocks),
        load_ns=time.monotonic_ns() - begun,
        isa=getattr(executor, "isa", spec.executor),
    )
    return engine, ready


def kv_blocks(program: Program, spec: EngineSpec) -> tuple[int, ...]:
    """How many blocks of each pool fit in the KV memory; OutOfMemory if these are no usable numbers."""
    least = program.cache.bytes_needed(2 * BLOCK_SIZE, spec.batch_tokens)
    if spec.kv_bytes < least:
        raise OutOfMemory(
            f"{2 * BLOCK_SIZE} tokens of this model's KV cache take {least} bytes, but it was given "
            f"{spec.kv_bytes}; set CORRAL_KV_CACHE to a larger size"
        )
    return program.cache.divide(spec.kv_bytes, program.context_length, spec.batch_tokens)


def make_executor(
    program: Program, spec: EngineSpec, num_blocks: tuple[int, ...], source: ModelSource
) -> Executor:
    """The executor that a spec names, imported when it is wanted."""
    if spec.executor not in EXECUTORS:
        raise EngineFailed(f"no executor '{spec.executor}'; there are: {', '.join(EXECUTORS)}")
    location, fields = EXECUTORS[spec.executor]
    module, name = location.split(":")
    options: dict[str, Any] = {field: getattr(spec, field) for field in fields}
    if spec.executor == "native":
        options["on_packed"] = source.release
    factory = getattr(importlib.import_module(module), name)
    executor: Executor = factory(program, num_blocks=num_blocks, max_tokens=spec.batch_tokens, **options)
    return executor
