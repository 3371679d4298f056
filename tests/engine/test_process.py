"""An engine's process, and the spare one."""

import asyncio
import signal

from corral.engine.client import EngineClient
from corral.engine.process import Spare
from corral.engine.protocol import EngineSpec
from gguf_files import tiny_llama
from outputs import reserving


def test_spare_process_loads_the_first_model_and_another_one_the_next(tmp_path):
    path = tmp_path / "tiny.gguf"
    tiny_llama(path)
    spec = EngineSpec(path=str(path), threads=1, batch_tokens=64, max_sequences=8, executor="reference")

    async def scenario():
        spare = Spare()
        waiting = spare._process
        clients = [
            await EngineClient.start(
                spec, reserving(1 << 20), load_timeout=60, step_timeout=60, process=spare.take()
            )
            for _ in range(2)
        ]
        assert clients[0].pid == waiting.pid != clients[1].pid
        for client in clients:
            await client.stop()

    asyncio.run(scenario())


def test_spare_process_that_died_is_replaced():
    async def scenario():
        spare = Spare()
        waiting = spare._process
        waiting.signal(signal.SIGKILL)
        assert "SIGKILL" in await waiting.ending()
        taken = spare.take()
        assert taken.pid != waiting.pid and taken.runs
        taken.close()
        assert await taken.ending() == "ended with status 0"

    asyncio.run(scenario())


def test_spare_process_that_nobody_took_ends_when_it_is_closed():
    async def scenario():
        spare = Spare()
        waiting = spare._process
        spare.close()
        assert await waiting.ending() == "ended with status 0"

    asyncio.run(scenario())
