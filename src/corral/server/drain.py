"""The work in flight, and the order in which a server stops: refuse new work, wait, then abort."""

import asyncio
import contextlib
from collections.abc import Iterator
from typing import Any

from corral.errors import ShuttingDown

LAST_WORDS = 3.0  # seconds for aborted streams to send their error


class Drain:
    """Counts requests that keep an engine or a download busy. Used from one event loop."""

    def __init__(self) -> None:
        self.draining = False
        self.aborting = False
        self._tasks: set[asyncio.Task[Any]] = set()
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def in_flight(self) -> int:
        """How many pieces of work run now."""
        return len(self._tasks)

    def refuse_when_draining(self) -> None:
        """Raise ShuttingDown once the server has been told to stop."""
        if self.draining:
            raise ShuttingDown("the server is shutting down; try again in a moment")

    @contextlib.contextmanager
    def work(self, task: asyncio.Task[Any]) -> Iterator[None]:
        """Count a task for as long as the block lasts; abort() cancels it."""
        self._tasks.add(task)
        self._idle.clear()
        try:
            yield
        finally:
            self._tasks.discard(task)
            if not self._tasks:
                self._idle.set()

    async def wait(self, timeout: float) -> bool:
        """True when all work has ended within the time."""
        try:
            await asyncio.wait_for(self._idle.wait(), timeout)
        except TimeoutError:
            return False
        return True

    def abort(self) -> None:
        """Cancel all work; each stream gets an error as its last line."""
        self.draining = self.aborting = True
        for task in self._tasks:
            task.cancel()
