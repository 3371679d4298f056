import asyncio
import contextlib
import os
import signal
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import msgspec
import pytest

from conversations import user
from corral.config import Settings
from corral.engine.client import EngineClient
from corral.engine.protocol import Need, Ready
from corral.errors import (
    CorruptModel,
    EngineFailed,
    ModelNotFound,
    OutOfMemory,
    ShuttingDown,
    UnsupportedModel,
)
from corral.pool.pool import Pool
from corral.store.local import StoredModel
from corral.store.names import ModelName
from corral.types import CPU, DeviceMemory, SamplingParams
from gguf_files import tiny_llama, write_gguf
from outputs import outputs_of

KV, WEIGHTS, BUFFERS = 1 << 20, 900_000, 100_000
NEED = KV + WEIGHTS + BUFFERS


@pytest.fixture(scope="module")
def model_path(tmp_path_factory):
    return tiny_llama(tmp_path_factory.mktemp("models") / "tiny.gguf")


class Shelf:
    """A store of models that share one file."""

    def __init__(self, path, *names):
        self.models = {
            (parsed := ModelName.parse(name)): StoredModel(
                name=parsed, digest=name, size=1, modified_at=datetime.now(UTC), path=path
            )
            for name in names
        }

    def locate(self, name):
        return self.find(name).name

    def find(self, name):
        if ModelName.parse(name) not in self.models:
            raise ModelNotFound(name)
        return self.models[ModelName.parse(name)]

    def replace(self, name, **changes):
        key = ModelName.parse(name)
        self.models[key] = replace(self.models[key], **changes)


class FakeEngines:
    """Starts engines that do nothing; `failure` makes the next one fail.

    `gate` holds every start back before it says what it needs, `pack_gate` after memory was reserved, and
    `stop_gate` holds every stop back.
    """

    def __init__(self):
        self.started, self.stopped, self.reserved = [], [], []
        self.gate, self.pack_gate, self.stop_gate = asyncio.Event(), asyncio.Event(), asyncio.Event()
        for gate in (self.gate, self.pack_gate, self.stop_gate):
            gate.set()
        self.failure = None
        self.weights = WEIGHTS  # after packing

    async def __call__(self, spec, reserve, *, load_timeout, step_timeout):
        await self.gate.wait()
        kv_bytes = await reserve(Need({CPU: DeviceMemory(WEIGHTS, BUFFERS)}, KV, KV))
        self.reserved.append(kv_bytes)
        await self.pack_gate.wait()
        if self.failure:
            failure, self.failure = self.failure, None
            raise failure
        ready = Ready(
            context_length=512,
            vocab_size=9,
            num_blocks=4,
            block_size=16,
            kv_tokens=64,
            memory={CPU: DeviceMemory(self.weights, BUFFERS, kv_bytes)},
        )
        engine = SimpleNamespace(ready=ready, spec=spec, failed=asyncio.get_running_loop().create_future())
        engine.stop = lambda: self.stop(engine)
        engine.healthy = lambda: True
        self.started.append(engine)
        return engine

    async def stop(self, engine):
        await asyncio.sleep(0)
        await self.stop_gate.wait()
        self.stopped.append(engine)

    @property
    def alive(self):
        return len(self.started) - len(self.stopped)


def run(path, scenario, **settings):
    """Run scenario(pool, engines, shelf) over models a to d, of which two fit the budget."""
    values = {
        "kv_cache": KV,
        "memory_budget": NEED * 5 // 2,
        "keep_alive": 60.0,
        "load_timeout": 20.0,
    } | settings

    async def main():
        shelf, engines = Shelf(path, "a", "b", "c", "d"), FakeEngines()
        pool = Pool(shelf, Settings(**values), engines)
        try:
            await scenario(pool, engines, shelf)
        finally:
            await pool.close()
        assert engines.alive == 0, "an engine was left running"
        assert not pool._held and not pool._places

    asyncio.run(main())


async def use(pool, name, keep_alive=None):
    async with pool.lease(name, keep_alive) as model:
        return model


async def until(condition):
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.005)


def names(pool):
    return {model.stored.name.model for model in pool.loaded()}


def test_lease_loads_once_and_gives_everything_a_request_needs(model_path):
    async def scenario(pool, engines, shelf):
        async with pool.lease("a") as model:
            assert model.stored == shelf.find("a")
            assert (model.info.context_length, model.info.kv_tokens) == (512, 64)
            assert model.tokenizer.encode("the rain", special=False, add_bos=False)
            assert model.template is not None
            assert model.size == NEED and model.load_ns > 0
        async with pool.lease("a") as again:
            assert again is model
        spec = engines.started[0].spec
        assert spec.path == str(model_path)
        assert len(engines.started) == 1 and engines.reserved == [KV]

    run(model_path, scenario)


def test_concurrent_first_leases_load_once(model_path):
    async def scenario(pool, engines, shelf):
        models = await asyncio.gather(*(use(pool, "a") for _ in range(10)))
        assert len({id(model) for model in models}) == 1 == len(engines.started)

    run(model_path, scenario)


def test_loaded_model_keeps_no_file_open(model_path):
    def held():
        with open("/proc/self/maps") as maps:
            return [line for line in maps if str(model_path) in line]

    async def scenario(pool, engines, shelf):
        async with pool.lease("a") as model:
            assert held() == []
            assert model.tokenizer.encode("the rain", special=False, add_bos=False)
            assert model.template.encode(user("hi"))

    run(model_path, scenario)


def test_a_slow_load_does_not_hold_up_another_model(model_path):
    async def scenario(pool, engines, shelf):
        engines.gate.clear()
        slow = asyncio.create_task(use(pool, "a"))
        await until(lambda: ModelName.parse("a") in pool._places)
        quick = asyncio.create_task(use(pool, "b"))
        await until(lambda: len(pool._places) == 2)
        assert not slow.done() and not quick.done()
        engines.gate.set()
        await asyncio.gather(slow, quick)
        assert names(pool) == {"a", "b"}

    run(model_path, scenario)


def test_giving_up_waiting_leaves_the_load_to_the_others(model_path):
    async def scenario(pool, engines, shelf):
        engines.gate.clear()
        first, second = (asyncio.create_task(use(pool, "a")) for _ in range(2))
        await until(lambda: any(place.leases == 2 for place in pool._places.values()))
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        engines.gate.set()
        assert await second
        assert len(engines.started) == 1

    run(model_path, scenario)


def test_missing_model_is_not_found(model_path):
    async def scenario(pool, engines, shelf):
        with pytest.raises(ModelNotFound):
            await use(pool, "z")
        with pytest.raises(ModelNotFound):
            await pool.unload("z")

    run(model_path, scenario)


def test_failed_load_reaches_all_who_wait_and_the_next_lease_tries_again(model_path):
    async def scenario(pool, engines, shelf):
        engines.failure = EngineFailed("no luck")
        results = await asyncio.gather(use(pool, "a"), use(pool, "a"), return_exceptions=True)
        assert [str(result) for result in results] == ["no luck", "no luck"]
        assert pool.loaded() == []
        await use(pool, "a")
        assert names(pool) == {"a"}

    run(model_path, scenario)


def test_damaged_file_is_corrupt_and_leaves_no_engine(model_path, tmp_path):
    async def scenario(pool, engines, shelf):
        broken = tmp_path / "broken.gguf"
        broken.write_bytes(model_path.read_bytes()[:500])
        shelf.replace("a", path=broken)
        with pytest.raises(CorruptModel):
            await use(pool, "a")
        assert engines.alive == 0

    run(model_path, scenario)


def test_architecture_of_another_family_is_named_before_its_keys_are_missed(model_path, tmp_path):
    async def scenario(pool, engines, shelf):
        other = write_gguf(tmp_path / "mamba.gguf", {"general.architecture": "mamba", "mamba.block_count": 2})
        shelf.replace("a", path=other)
        with pytest.raises(UnsupportedModel, match=r"mamba.*supported: .*llama"):
            await use(pool, "a")
        assert engines.alive == 0

    run(model_path, scenario)


def test_bad_template_or_tokeniser_leaves_no_engine(model_path, monkeypatch):
    def fail(metadata, tokenizer):
        raise CorruptModel("bad template")

    monkeypatch.setattr("corral.text.template.load_template", fail)

    async def scenario(pool, engines, shelf):
        with pytest.raises(CorruptModel):
            await use(pool, "a")

    run(model_path, scenario)


def test_idle_model_goes_after_keep_alive_and_a_new_lease_stops_the_clock(model_path):
    async def scenario(pool, engines, shelf):
        await use(pool, "a", keep_alive=0.05)
        async with pool.lease("a"):
            await asyncio.sleep(0.15)
            assert names(pool) == {"a"}
        await until(lambda: engines.alive == 0)
        assert pool.loaded() == []

    run(model_path, scenario)


def test_keep_alive_of_nothing_unloads_with_the_last_lease(model_path):
    async def scenario(pool, engines, shelf):
        async with pool.lease("a"):
            await use(pool, "a", keep_alive=0)
            assert names(pool) == {"a"} and engines.alive == 1
        assert pool.loaded() == []
        await until(lambda: engines.alive == 0)

    run(model_path, scenario)


def test_negative_keep_alive_has_no_end_and_the_latest_wish_counts(model_path):
    async def scenario(pool, engines, shelf):
        await use(pool, "a", keep_alive=-1)
        assert pool.loaded()[0].expires_at is None
        await use(pool, "a")
        assert pool.loaded()[0].expires_at is None
        await use(pool, "a", keep_alive=600)
        left = pool.loaded()[0].expires_at - datetime.now(UTC)
        assert timedelta(seconds=500) < left <= timedelta(seconds=600)

    run(model_path, scenario)


@pytest.mark.parametrize("keep_alive", [1e10, 1e308, float("inf"), pytest.param(10**400, id="huge")])
def test_keep_alive_beyond_all_clocks_is_told_as_a_far_day(model_path, keep_alive):
    async def scenario(pool, engines, shelf):
        await use(pool, "a", keep_alive=keep_alive)
        (model,) = pool.loaded()
        assert model.expires_at.year > 2200
        async with pool.lease("a"):
            assert pool.loaded()[0].expires_at.year > 2200

    run(model_path, scenario)


def test_expiry_of_a_model_in_use_is_counted_from_now(model_path):
    async def scenario(pool, engines, shelf):
        async with pool.lease("a", keep_alive=100):
            left = pool.loaded()[0].expires_at - datetime.now(UTC)
            assert timedelta(seconds=50) < left <= timedelta(seconds=100)

    run(model_path, scenario)


def test_least_recently_used_idle_model_makes_room(model_path):
    async def scenario(pool, engines, shelf):
        await use(pool, "a")
        await use(pool, "b")
        await use(pool, "a")
        await use(pool, "c")
        assert names(pool) == {"a", "c"} and engines.alive == 2

    run(model_path, scenario)


@pytest.mark.timeout(30)
def test_no_second_model_goes_while_the_room_of_the_first_is_still_being_freed(model_path):
    async def scenario(pool, engines, shelf):
        await use(pool, "a")
        await use(pool, "b")
        engines.stop_gate.clear()
        loading = asyncio.create_task(use(pool, "c"))
        await until(lambda: ModelName.parse("a") not in pool._places)
        for _ in range(3):
            await use(pool, "b")  # every lease that ends wakes who waits for room
        engines.stop_gate.set()
        await loading
        assert names(pool) == {"b", "c"} and engines.stopped == engines.started[:1]

    run(model_path, scenario)


def test_books_hold_what_is_needed_and_then_what_was_taken(model_path):
    async def scenario(pool, engines, shelf):
        engines.pack_gate.clear()
        engines.weights = WEIGHTS + 5000
        loading = asyncio.create_task(use(pool, "a"))
        await until(lambda: engines.reserved)
        (place,) = pool._held
        assert place.reserved == NEED
        engines.pack_gate.set()
        await loading
        assert place.reserved == NEED + 5000 == pool.loaded()[0].size

    run(model_path, scenario)


def test_model_that_packs_larger_than_it_said_leaves_less_to_others(model_path):
    async def scenario(pool, engines, shelf):
        engines.weights = NEED * 2
        await use(pool, "a")
        engines.weights = WEIGHTS
        await use(pool, "b")
        assert names(pool) == {"b"} and engines.alive == 1

    run(model_path, scenario)


@pytest.mark.parametrize("gate", ["gate", "pack_gate"])
def test_unload_during_a_load_leaves_nothing_behind(model_path, gate):
    async def scenario(pool, engines, shelf):
        getattr(engines, gate).clear()
        loading = asyncio.create_task(use(pool, "a"))
        await until(lambda: pool._held and (gate == "gate" or engines.reserved))
        unloading = asyncio.create_task(pool.unload("a"))
        await until(lambda: not pool._places)
        getattr(engines, gate).set()
        await asyncio.gather(loading, unloading)
        await until(lambda: engines.alive == 0 and not pool._held)

    run(model_path, scenario)


def test_load_that_fails_after_its_reservation_gives_the_memory_back(model_path):
    async def scenario(pool, engines, shelf):
        engines.failure = EngineFailed("died while packing")
        with pytest.raises(EngineFailed):
            await use(pool, "a")
        assert engines.reserved == [KV] and not pool._held
        await use(pool, "b")
        await use(pool, "c")
        assert names(pool) == {"b", "c"}

    run(model_path, scenario)


def test_close_ends_a_load_that_waits_for_memory(model_path):
    async def scenario(pool, engines, shelf):
        async with pool.lease("a"), pool.lease("b"):
            waiting = asyncio.create_task(use(pool, "c"))
            await until(lambda: len(pool._held) == 3)
            await pool.close()
            with pytest.raises(ShuttingDown):
                await waiting

    run(model_path, scenario)


def test_max_loaded_models_counts_like_memory(model_path):
    async def scenario(pool, engines, shelf):
        await use(pool, "a")
        await use(pool, "b")
        assert names(pool) == {"b"} and engines.alive == 1

    run(model_path, scenario, max_loaded_models=1)


def test_model_in_use_is_never_unloaded_for_another_which_waits(model_path):
    async def scenario(pool, engines, shelf):
        async with pool.lease("a"), pool.lease("b"):
            waiting = asyncio.create_task(use(pool, "c"))
            await asyncio.sleep(0.05)
            assert not waiting.done() and names(pool) == {"a", "b"}
        await waiting
        assert names(pool) >= {"c"} and engines.alive == 2

    run(model_path, scenario)


def test_waiting_for_room_ends_in_out_of_memory_with_both_figures(model_path):
    async def scenario(pool, engines, shelf):
        async with pool.lease("a"), pool.lease("b"):
            with pytest.raises(OutOfMemory, match=r"needs .* GiB, but models in use take .* GiB of"):
                await use(pool, "c")
            assert names(pool) == {"a", "b"}
        await use(pool, "c")

    run(model_path, scenario, load_timeout=0.05)


def test_model_larger_than_the_budget_is_refused_and_nothing_is_unloaded_for_it(model_path):
    async def scenario(pool, engines, shelf):
        with pytest.raises(OutOfMemory, match="all models together may take"):
            await use(pool, "a")

    run(model_path, scenario, memory_budget=1000)


def test_failed_engine_is_replaced_at_the_next_lease(model_path):
    async def scenario(pool, engines, shelf):
        async with pool.lease("a") as model:
            engines.started[0].failed.set_result(EngineFailed("died"))
            async with pool.lease("a") as other:
                assert other.engine is not model.engine
        await until(lambda: engines.alive == 1)
        assert names(pool) == {"a"}

    run(model_path, scenario)


def test_model_replaced_in_the_store_is_loaded_anew_while_old_leases_go_on(model_path):
    async def scenario(pool, engines, shelf):
        async with pool.lease("a") as old:
            shelf.replace("a", digest="other")
            async with pool.lease("a") as new:
                assert new.engine is not old.engine and engines.alive == 2
        await until(lambda: engines.alive == 1)

    run(model_path, scenario)


def test_unload_waits_for_leases_but_takes_no_new_ones(model_path):
    async def scenario(pool, engines, shelf):
        assert not await pool.unload("a")
        await use(pool, "a")
        assert await pool.unload("a") and engines.alive == 0
        async with pool.lease("a"):
            assert await pool.unload("a")
            assert pool.loaded() == [] and engines.alive == 1
        await until(lambda: engines.alive == 0)

    run(model_path, scenario)


def test_closed_pool_refuses_new_leases(model_path):
    async def scenario(pool, engines, shelf):
        await use(pool, "a")
        await pool.close()
        with pytest.raises(ShuttingDown):
            await use(pool, "a")

    run(model_path, scenario)


def test_close_ends_engines_in_use_and_loads_under_way(model_path):
    async def scenario(pool, engines, shelf):
        async with pool.lease("a"):
            engines.gate.clear()
            loading = asyncio.create_task(use(pool, "b"))
            await until(lambda: len(pool._held) == 2)
            await pool.close()
            with pytest.raises(ShuttingDown):
                await loading
            assert engines.alive == 0

    run(model_path, scenario)


def test_real_engine_is_killed_and_comes_back_with_the_next_lease(model_path):
    async def start(spec, reserve, **timeouts):
        spec = msgspec.structs.replace(spec, executor="reference")
        return await EngineClient.start(spec, reserve, **timeouts)

    async def scenario():
        settings = Settings(kv_cache=KV, memory_budget=1 << 30, batch_tokens=64, max_sequences=4)
        pool = Pool(Shelf(model_path, "a"), settings, start)
        params = SamplingParams(temperature=0, max_tokens=4)
        try:
            async with pool.lease("a") as model:
                before = [
                    id async for output in outputs_of(model.engine, [1, 2], params) for id in output.tokens
                ]
                os.kill(model.engine.pid, signal.SIGKILL)
                with pytest.raises(EngineFailed):
                    async for _ in outputs_of(model.engine, [1, 2], params):
                        pass
            async with pool.lease("a") as again:
                assert again.engine.pid != model.engine.pid
                after = [
                    id async for output in outputs_of(again.engine, [1, 2], params) for id in output.tokens
                ]
                assert after == before
                pid = again.engine.pid
        finally:
            await pool.close()
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)

    asyncio.run(scenario())


def test_a_lease_ends_however_its_block_ends(model_path):
    async def scenario(pool, engines, shelf):
        with contextlib.suppress(ValueError):
            async with pool.lease("a", keep_alive=0):
                raise ValueError
        await until(lambda: engines.alive == 0)

    run(model_path, scenario)
