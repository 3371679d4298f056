"""What every endpoint works with."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from corral.config import Settings
from corral.errors import InvalidRequest
from corral.pool.pool import Pool
from corral.server.drain import Drain
from corral.server.faults import Fault
from corral.server.generate import Collected, generate
from corral.server.generation import Admitted, Event, Generation, WholeReply
from corral.server.work import Outlet, Work, single, stream
from corral.store.local import Store, StoredModel


class Shape(Protocol):
    """How an API prints the replies to one request."""

    stream_type: str  # media types
    whole_type: str

    def chunk(self, event: Event) -> bytes:
        """What a stream says of an event; it may be nothing."""
        ...

    def end(self) -> bytes:
        """What a stream ends with."""
        ...

    def whole(self, admitted: Admitted, replies: Sequence[WholeReply]) -> bytes:
        """All replies as one object."""
        ...

    def last_words(self, found: Fault) -> bytes:
        """How a stream tells of an error after its headers have gone."""
        ...


@dataclass(frozen=True, slots=True)
class Service:
    """The server's parts, as the dialects see them."""

    settings: Settings
    store: Store
    pool: Pool
    drain: Drain

    def answer(self, generation: Generation, shape: Shape, *, streaming: bool) -> Work:
        """Run a generation and print it in the API's shape."""

        async def write_chunks(outlet: Outlet) -> None:
            await self._generate(generation, lambda event: outlet.write(shape.chunk(event)), outlet.open)
            outlet.write(shape.end())

        async def whole() -> bytes:
            collected = Collected()
            await self._generate(generation, collected.take)
            return shape.whole(collected.admitted, collected.replies())

        if streaming:
            return stream(self.drain, write_chunks, shape.stream_type, shape.last_words)
        return single(self.drain, whole, shape.whole_type)

    async def _generate(
        self,
        generation: Generation,
        emit: Callable[[Event], None],
        begin: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """Run a generation with the operator's default context."""
        replies, most = len(generation.prompts) * generation.n, self.settings.max_queue
        if replies > most:  # or it would be told to try again later, for ever
            raise InvalidRequest(
                f"the request asks for {replies} replies, but a model takes at most {most} at once; "
                "ask for fewer, or raise OLLAMA_MAX_QUEUE",
                "n",
            )
        context = self.settings.context_length
        await generate(self.pool, generation, emit, begin=begin, default_context=context)

    async def find(self, name: str) -> StoredModel:
        """A model of the store; reading its manifest happens on a thread."""
        return await asyncio.to_thread(self.store.find, name)
