"""What every endpoint works with."""

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass

from corral.config import Settings
from corral.errors import InvalidRequest
from corral.pool.pool import Pool
from corral.server.drain import Drain
from corral.server.generate import generate
from corral.server.generation import Event, Generation
from corral.store.local import Store, StoredModel


@dataclass(frozen=True, slots=True)
class Service:
    """The server's parts, as the dialects see them."""

    settings: Settings
    store: Store
    pool: Pool
    drain: Drain

    def generate(self, generation: Generation) -> AsyncGenerator[Event, None]:
        """Run a generation with the operator's default context."""
        replies, most = len(generation.prompts) * generation.n, self.settings.max_queue
        if replies > most:  # or it would be told to try again later, for ever
            raise InvalidRequest(
                f"the request asks for {replies} replies, but a model takes at most {most} at once; "
                "ask for fewer, or raise OLLAMA_MAX_QUEUE",
                "n",
            )
        return generate(self.pool, generation, self.settings.context_length)

    async def find(self, name: str) -> StoredModel:
        """A model of the store; reading its manifest happens on a thread."""
        return await asyncio.to_thread(self.store.find, name)
