"""Measures one workload: the client runs on a thread of its own, the gauges on the caller's.

The client's thread is nice and gives way to the server; the caller's is not, as servers are started from it.
"""

import asyncio
import contextlib
import os
import threading
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

from corral.bench.gauges import Gauges
from corral.bench.machine import ProcessTree
from corral.bench.target import Meter
from corral.bench.workloads import Job, Outcome, Workload

NICENESS = 5
EVERY = 1.0  # seconds between readings

Watch = Callable[[Meter], None]
T = TypeVar("T")


def run_nicely(work: Callable[[], Coroutine[Any, Any, T]], tick: Callable[[], None]) -> T:
    """Run a coroutine on a nice thread; `tick` is called about once a second, and an interrupt ends both."""
    ended: Future[T] = Future()
    state: list[tuple[asyncio.AbstractEventLoop, asyncio.Task[T]]] = []

    async def held() -> T:
        task = asyncio.create_task(work())
        state.append((asyncio.get_running_loop(), task))
        return await task

    def run() -> None:
        with contextlib.suppress(OSError, AttributeError):  # Linux: of this thread only
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
        try:
            ended.set_result(asyncio.run(held()))
        except BaseException as error:
            ended.set_exception(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        while not _ends_within(ended, EVERY):
            tick()
    except BaseException:
        for loop, task in state:
            with contextlib.suppress(RuntimeError):  # it has just ended
                loop.call_soon_threadsafe(task.cancel)
        thread.join(5)
        raise
    return ended.result()


def _ends_within(ended: "Future[Any]", seconds: float) -> bool:
    with contextlib.suppress(TimeoutError):
        ended.exception(seconds)
    return ended.done()


def measure(workload: Workload, job: Job, tree: ProcessTree | None, watch: Watch) -> Outcome:
    """Run one workload; its figures with the gauges' and what the client itself took."""
    meter, gauges = Meter(), Gauges(job.target, tree)

    def tick() -> None:
        gauges.read()
        watch(meter)

    began, cpu = time.perf_counter(), time.process_time()
    outcome = run_nicely(lambda: workload.run(job, meter), tick)
    share = (time.process_time() - cpu) / max(1e-9, time.perf_counter() - began)
    gauges.read()
    return Outcome({**outcome.figures, **gauges.figures(), "client_cpu": share}, outcome.problems)
