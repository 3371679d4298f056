"""Which models are loaded: leases, keep-alive, and whom to unload when memory is short.

A model has one place from the start of its load until its process is gone. Its memory counts from the moment
at which its engine process has said what it needs and that was reserved: first what it needs, then what it
has taken. A place that is no longer found by name (unloaded, failed, replaced in the store) is retired: it
ends with its last lease. Everything here runs on one event loop: between two awaits nothing else changes.
"""

import asyncio
import contextlib
import functools
import logging
import time
from collections.abc import AsyncGenerator, Collection
from datetime import UTC, datetime, timedelta

from corral.config import Settings
from corral.engine.client import EngineClient
from corral.engine.protocol import Need
from corral.engine.tasks import TaskSet
from corral.errors import OutOfMemory, ShuttingDown
from corral.pool.loaded import LoadedModel, ModelInfo, StartEngine, load_model
from corral.pool.machine import available_memory
from corral.pool.memory import MemoryBudget, total_bytes
from corral.store.local import Store, StoredModel
from corral.store.names import ModelName

__all__ = ["LoadedModel", "ModelInfo", "Pool"]

log = logging.getLogger(__name__)

_CLOSING = "the server is shutting down; try again in a moment"
_LONGEST = 292 * 365 * 86400.0  # seconds; Go's longest duration, and clocks and dates can still hold it


class _Place:
    """One load of one model, its memory and its leases."""

    def __init__(self, stored: StoredModel, keep_alive: float):
        self.stored = stored
        self.keep_alive = keep_alive
        self.loading: asyncio.Task[LoadedModel]
        self.model: LoadedModel | None = None
        self.leases = 0
        self.reserved = 0  # bytes
        self.last_used = time.monotonic()
        self.expires_at: float | None = None  # unix time, while idle and not kept for ever
        self.timer: asyncio.TimerHandle | None = None
        self.retired = False

    @property
    def idle(self) -> bool:
        """Whether the model could be unloaded at once."""
        return self.model is not None and not self.leases and not self.retired

    def stop_expiry(self) -> None:
        """Keep the model loaded until its expiry is started again."""
        if self.timer:
            self.timer.cancel()
        self.timer = self.expires_at = None

    def snapshot(self) -> LoadedModel | None:
        """The model with the time at which it expires, counted from now while it is in use."""
        if self.model is None or self.retired:
            return None
        expires = self.expires_at
        if expires is None and self.keep_alive >= 0:
            expires = time.time() + self.keep_alive
        return self.model.with_expiry(None if expires is None else _local_time(expires))


class Pool:
    """Loads models on demand and keeps them while they are wanted and fit."""

    def __init__(self, store: Store, settings: Settings, start_engine: StartEngine = EngineClient.start):
        self.store, self.settings = store, settings
        self._start_engine = start_engine
        self._budget = MemoryBudget.of(settings, available_memory())
        self._places: dict[ModelName, _Place] = {}
        self._held: set[_Place] = set()  # all that take memory, retired ones too
        self._changed = asyncio.Event()  # replaced at every change
        self._tasks = TaskSet()
        self._closing = False

    @contextlib.asynccontextmanager
    async def lease(
        self, wanted: str | StoredModel, keep_alive: float | None = None
    ) -> AsyncGenerator[LoadedModel, None]:
        """The model, loaded if need be, for as long as the block lasts.

        keep_alive: seconds that it then stays loaded; < 0 = for ever; None = as before, or as the settings.
        Raises ModelNotFound, CorruptModel, UnsupportedModel, OutOfMemory, EngineFailed or ShuttingDown.
        """
        stored = await asyncio.to_thread(self.store.find, wanted) if isinstance(wanted, str) else wanted
        if self._closing:
            raise ShuttingDown(_CLOSING)
        place = self._find(stored)
        if keep_alive is not None:
            place.keep_alive = min(keep_alive, _LONGEST)
        place.stop_expiry()
        place.leases += 1
        try:
            yield await self._wait_for_load(place)
        finally:
            place.leases -= 1
            self._end_or_expire(place)

    async def _wait_for_load(self, place: _Place) -> LoadedModel:
        try:
            return await asyncio.shield(place.loading)  # a lease that is given up leaves the load to others
        except asyncio.CancelledError:
            if place.loading.cancelled():
                raise ShuttingDown(_CLOSING) from None
            raise

    def loaded(self) -> list[LoadedModel]:
        """The models in memory, each with the time at which it will go."""
        snapshots = (place.snapshot() for place in self._places.values())
        return [model for model in snapshots if model is not None]

    async def unload(self, name: str) -> bool:
        """Unload a model when its last lease ends, at once if it is idle. Whether it was loaded."""
        place = self._places.get(await asyncio.to_thread(self.store.locate, name))
        if place is None:
            return False
        self._retire(place)
        if not place.leases:
            await self._wait_until_ended(place)
        return True

    async def close(self) -> None:
        """Take no more leases, and end every engine, in use or not; who drains has done so before."""
        self._closing = True
        for place in list(self._held):
            place.loading.cancel()
            self._retire(place)
            self._tasks.start(self._end(place))
        for place in list(self._held):
            await self._wait_until_ended(place)

    def _find(self, stored: StoredModel) -> _Place:
        """The model's place; a new one, on which it begins to load, if it has none that is good."""
        place = self._places.get(stored.name)
        if place and (place.stored.digest != stored.digest or _has_failed(place)):
            self._retire(place)
            place = None
        if place is None:
            place = self._places[stored.name] = _Place(stored, min(self.settings.keep_alive, _LONGEST))
            self._held.add(place)
            place.loading = asyncio.get_running_loop().create_task(self._load(place))
            place.loading.add_done_callback(lambda task: self._load_ended(place, task))
        return place

    async def _load(self, place: _Place) -> LoadedModel:
        reserve = functools.partial(self._reserve, place)
        model = await load_model(place.stored, reserve, self.settings, self._start_engine)
        place.reserved = model.size
        log.info("loaded %s in %.2f s", place.stored.name, model.load_ns / 1e9)
        model.engine.failed.add_done_callback(lambda _: self._retire(place))
        return model

    async def _reserve(self, place: _Place, need: Need) -> int:
        """Reserve what a model needs, when there is room; the bytes of its KV cache."""
        kv_bytes = self._budget.kv_bytes(need, self.settings)
        await self._make_room(place, total_bytes(need.memory) + kv_bytes)
        return kv_bytes

    def _load_ended(self, place: _Place, task: "asyncio.Task[LoadedModel]") -> None:
        if task.cancelled() or task.exception():
            place.reserved = 0
            self._held.discard(place)
            self._retire(place)
        else:
            place.model = task.result()
            self._end_or_expire(place)
        self._announce_change()

    async def _make_room(self, place: _Place, need: int) -> None:
        """Reserve memory: unload idle models, the least recently used first, or wait for one to be idle."""
        name, limit = place.stored.name, self._budget.total
        if need > limit:
            raise OutOfMemory(
                f"model '{name}' needs {_gib(need)} for weights and KV cache, but all models together may "
                f"take {_gib(limit)}; use a smaller model, or set CORRAL_KV_CACHE or CORRAL_MEMORY"
            )
        try:
            async with asyncio.timeout(self.settings.load_timeout):
                while not self._fits(need):
                    await self._unload_idle_or_wait(need)
        except TimeoutError:
            taken = sum(other.reserved for other in self._held)
            raise OutOfMemory(
                f"model '{name}' needs {_gib(need)}, but models in use take {_gib(taken)} of {_gib(limit)}; "
                "try again when one of them is idle"
            ) from None
        place.reserved = need

    async def _unload_idle_or_wait(self, need: int) -> None:
        going = [place for place in self._held if place.retired and not place.leases]
        idle = sorted((p for p in self._held if p.idle), key=lambda p: p.last_used)
        if not self._fits(need, without=going) and self._fits(need, without=[*going, *idle]):
            log.info("unloading %s to make room", idle[0].stored.name)
            self._retire(idle[0])
        await self._changed.wait()

    def _fits(self, need: int, without: Collection[_Place] = ()) -> bool:
        others = [place for place in self._held if place.reserved and place not in without]
        most = self.settings.max_loaded_models
        if most and len(others) >= most:
            return False
        return sum(place.reserved for place in others) + need <= self._budget.total

    def _end_or_expire(self, place: _Place) -> None:
        """After a lease or a load: unload a model without leases, or let it expire after its keep-alive."""
        place.last_used = time.monotonic()
        self._announce_change()
        if place.leases or place.model is None:
            return
        if place.retired or place.keep_alive == 0:
            self._retire(place)
        elif place.keep_alive > 0:
            place.stop_expiry()
            place.expires_at = time.time() + place.keep_alive
            place.timer = asyncio.get_running_loop().call_later(place.keep_alive, self._retire, place)

    def _retire(self, place: _Place) -> None:
        """Give the place to no new lease; it ends with its last one."""
        place.retired = True
        place.stop_expiry()
        if self._places.get(place.stored.name) is place:
            del self._places[place.stored.name]
        if place.model and not place.leases:
            self._tasks.start(self._end(place))

    async def _end(self, place: _Place) -> None:
        model, place.model = place.model, None
        if model is None:
            return
        try:
            await model.engine.stop()
        finally:  # or its memory would count for ever, and close() wait for it
            self._held.discard(place)
            place.reserved = 0
            self._announce_change()
        log.info("unloaded %s", place.stored.name)

    async def _wait_until_ended(self, place: _Place) -> None:
        while place in self._held:
            await self._changed.wait()

    def _announce_change(self) -> None:
        """Wake all that wait for a change."""
        self._changed.set()
        self._changed = asyncio.Event()


def _has_failed(place: _Place) -> bool:
    return place.model is not None and place.model.engine.failed.done()


def _local_time(timestamp: float) -> datetime:
    return (datetime.fromtimestamp(0, UTC) + timedelta(seconds=timestamp)).astimezone()


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB"
