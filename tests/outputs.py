"""An engine's outputs as an iterator, for tests that look at them one by one."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

from corral.engine.protocol import Output
from corral.errors import EngineFailed
from corral.types import SamplingParams


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
