"""Starting an engine and reading its outputs one by one, for tests."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

from corral.engine.protocol import Need, Output
from corral.errors import EngineFailed
from corral.types import SamplingParams


def reserving(kv_bytes: int) -> Callable[[Need], Awaitable[int]]:
    """What EngineClient.start reserves memory with: so much for the KV cache, at once."""

    async def reserve(need: Need) -> int:
        return kv_bytes

    return reserve


async def outputs_of(
    engine: Any, prompt: list[int], params: SamplingParams, **options: Any
) -> AsyncGenerator[Output, None]:
    """The outputs of a request as they come; closing the iterator cancels it."""
    inbox: asyncio.Queue[Output | EngineFailed] = asyncio.Queue()
    id = engine.submit(prompt, params, inbox.put_nowait, **options)
    try:
        while True:
            output = await inbox.get()
            if isinstance(output, EngineFailed):
                raise output
            yield output
            if output.finish:
                return
    finally:
        engine.cancel(id)
