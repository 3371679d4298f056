"""A loaded model: everything that serving a request takes, and how it is put together."""

import asyncio
import dataclasses
import time
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from corral.config import Settings
from corral.engine.client import EngineClient
from corral.engine.protocol import EngineSpec
from corral.models.config import ModelConfig, read_config
from corral.models.table import find_family
from corral.pool.machine import usable_cores
from corral.pool.memory import ModelMemory
from corral.store.local import StoredModel
from corral.store.names import ModelName
from corral.weights.open import open_source
from corral.weights.source import ModelSource

if TYPE_CHECKING:  # their libraries are imported beside the engine's load; see _load_text
    from corral.text.template import ChatTemplate
    from corral.text.tokenizer import Tokenizer


class StartEngine(Protocol):
    """EngineClient.start, or a test's stand-in."""

    async def __call__(self, spec: EngineSpec, *, load_timeout: float, step_timeout: float) -> EngineClient:
        """Start an engine and wait until its model is loaded."""
        ...


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """A model's figures."""

    architecture: str
    context_length: int  # the longest that a request can have
    kv_tokens: int  # the longest sequence that the KV cache holds


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model in memory. Valid while its lease is held."""

    name: ModelName
    stored: StoredModel
    tokenizer: "Tokenizer"
    template: "ChatTemplate"
    engine: EngineClient
    info: ModelInfo
    size: int  # bytes of memory that it may take
    load_ns: int
    expires_at: datetime | None = None  # in `Pool.loaded` only; None = it stays

    def with_expiry(self, expires_at: datetime | None) -> "LoadedModel":
        """The same with the time at which it will be unloaded."""
        return dataclasses.replace(self, expires_at=expires_at)


@dataclass(frozen=True, slots=True)
class ModelFile:
    """A model's file, opened and understood as far as the server needs it."""

    source: ModelSource
    config: ModelConfig
    size: int

    @classmethod
    def open(cls, path: Path) -> "ModelFile":
        """Open and check; raises CorruptModel or UnsupportedModel. Blocks."""
        source = open_source(path)
        find_family(source.architecture)  # first: another family has other keys, which are not missing
        return cls(source, read_config(source.metadata), source.size)


async def load_model(
    stored: StoredModel, file: ModelFile, memory: ModelMemory, settings: Settings, start_engine: StartEngine
) -> LoadedModel:
    """Read the text side on a thread while the engine process loads its weights."""
    begun = time.monotonic_ns()
    spec = EngineSpec(
        path=str(stored.path),
        threads=settings.threads or usable_cores(),
        batch_tokens=settings.batch_tokens,
        max_sequences=settings.max_sequences,
        kv_bytes=memory.kv,
        max_queue=settings.max_queue,
        drafts=settings.drafts,
        isa=settings.isa,
    )
    starting = asyncio.ensure_future(
        start_engine(spec, load_timeout=settings.load_timeout, step_timeout=settings.step_timeout)
    )
    try:
        tokenizer, template = await asyncio.to_thread(_load_text, file.source)
        asyncio.get_running_loop().run_in_executor(None, template.prepare)  # only a chat waits for it
        engine = await starting
    except BaseException:
        await _abandon(starting)
        raise
    ready = engine.ready
    info = ModelInfo(file.config.architecture, ready.context_length, ready.kv_tokens)
    return LoadedModel(
        name=stored.name,
        stored=stored,
        tokenizer=tokenizer,
        template=template,
        engine=engine,
        info=info,
        size=memory.total,
        load_ns=time.monotonic_ns() - begun,
    )


def _load_text(source: ModelSource) -> tuple["Tokenizer", "ChatTemplate"]:
    from corral.text.template import load_template
    from corral.text.tokenizer import load_tokenizer

    assets = source.text
    tokenizer = load_tokenizer(assets)
    return tokenizer, load_template(assets, tokenizer)


async def _abandon(starting: "asyncio.Future[EngineClient]") -> None:
    """The model cannot be used: no engine of it may stay."""
    starting.cancel()
    (result,) = await asyncio.gather(starting, return_exceptions=True)
    if not isinstance(result, BaseException):
        await result.stop()
