"""A loaded model: everything that serving a request takes, and how it is put together."""

import asyncio
import dataclasses
import time
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from corral.config import Settings
from corral.engine.client import EngineClient, ReserveMemory
from corral.engine.protocol import EngineSpec
from corral.models.table import find_family
from corral.pool.machine import usable_cores
from corral.pool.memory import total_bytes
from corral.store.local import StoredModel
from corral.weights.open import open_source

if TYPE_CHECKING:  # their libraries are imported beside the engine's load; see _load_text
    from corral.text.template import ChatTemplate
    from corral.text.tokenizer import Tokenizer


class StartEngine(Protocol):
    """EngineClient.start, or a test's stand-in."""

    async def __call__(
        self, spec: EngineSpec, reserve: ReserveMemory, *, load_timeout: float, step_timeout: float
    ) -> EngineClient:
        """Start an engine and wait until its model is loaded."""
        ...


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """A model's figures."""

    context_length: int  # the longest that a request can have
    kv_tokens: int  # the longest sequence that the KV cache holds


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model in memory. Valid while its lease is held."""

    stored: StoredModel
    tokenizer: "Tokenizer"
    template: "ChatTemplate"
    engine: EngineClient
    info: ModelInfo
    size: int  # bytes of memory that it has taken or reserved
    load_ns: int
    expires_at: datetime | None = None  # in `Pool.loaded` only; None = it stays

    def with_expiry(self, expires_at: datetime | None) -> "LoadedModel":
        """The same with the time at which it will be unloaded."""
        return dataclasses.replace(self, expires_at=expires_at)


async def load_model(
    stored: StoredModel, reserve: ReserveMemory, settings: Settings, start_engine: StartEngine
) -> LoadedModel:
    """Read the text side on a thread while an engine process opens the model and loads its weights."""
    begun = time.monotonic_ns()
    spec = EngineSpec(
        path=str(stored.path),
        threads=settings.threads or usable_cores(),
        batch_tokens=settings.batch_tokens,
        max_sequences=settings.max_sequences,
        context_length=settings.context_length,
        max_queue=settings.max_queue,
        drafts=settings.drafts,
        isa=settings.isa,
    )
    starting = asyncio.ensure_future(
        start_engine(spec, reserve, load_timeout=settings.load_timeout, step_timeout=settings.step_timeout)
    )
    reading = asyncio.ensure_future(_read_text(stored.path))
    try:
        engine, (tokenizer, template) = await asyncio.gather(starting, reading)
    except BaseException:
        await _abandon_load(starting, reading)
        raise
    ready = engine.ready
    return LoadedModel(
        stored=stored,
        tokenizer=tokenizer,
        template=template,
        engine=engine,
        info=ModelInfo(ready.context_length, ready.kv_tokens),
        size=total_bytes(ready.memory),
        load_ns=time.monotonic_ns() - begun,
    )


async def _read_text(path: Path) -> tuple["Tokenizer", "ChatTemplate"]:
    tokenizer, template = await asyncio.to_thread(_load_text, path)
    asyncio.get_running_loop().run_in_executor(None, template.prepare)  # only a chat waits for it
    return tokenizer, template


def _load_text(path: Path) -> tuple["Tokenizer", "ChatTemplate"]:
    from corral.text.template import load_template
    from corral.text.tokenizer import load_tokenizer

    with open_source(path) as source:
        find_family(source.architecture)  # another family's tokeniser may be another one too
        assets = source.text
        tokenizer = load_tokenizer(assets)
        return tokenizer, load_template(assets, tokenizer)


async def _abandon_load(starting: "asyncio.Future[EngineClient]", reading: asyncio.Future[Any]) -> None:
    """End the engine process of a model that cannot be used."""
    starting.cancel()
    reading.cancel()
    engine, _ = await asyncio.gather(starting, reading, return_exceptions=True)
    if not isinstance(engine, BaseException):
        await engine.stop()
