"""Work on the event loop that nobody waits for."""

import asyncio
from collections.abc import Coroutine


class TaskSet:
    """Tasks that run to their end on their own; the loop itself would let them be collected before."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, work: Coroutine[None, None, None]) -> None:
        """Run the work as a task of the running loop."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
