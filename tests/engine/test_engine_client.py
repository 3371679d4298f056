"""Engine processes for real, with the reference executor and a tiny random model."""

import asyncio
import contextlib
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from corral.engine.client import EngineClient
from corral.engine.protocol import Cancel, EngineSpec, Need, Ready, Reserve, Stop
from corral.engine.wire import (
    BadFrame,
    decode_from_engine,
    decode_to_engine,
    encode_frame,
    frame_length,
)
from corral.errors import (
    CorruptModel,
    EngineFailed,
    InvalidRequest,
    OutOfMemory,
    Overloaded,
    PromptTooLong,
    UnsupportedModel,
)
from corral.types import FinishReason, SamplingParams
from gguf_files import tiny_llama
from outputs import outputs_of, reserving

ENDLESS = SamplingParams(temperature=0)


@pytest.fixture(scope="module")
def model_path(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "tiny.gguf"
    tiny_llama(path)
    return path


KV = 1 << 20
RESERVE, GRANTED = reserving(KV), Reserve(KV)


def spec_of(path, **changes):
    values = {
        "threads": 1,
        "batch_tokens": 64,
        "max_sequences": 8,
        "executor": "reference",
    }
    return EngineSpec(path=str(path), **(values | changes))


@asynccontextmanager
async def running(path, step_timeout=60, kv_bytes=KV, **changes):
    client = await start(path, reserving(kv_bytes), step_timeout=step_timeout, **changes)
    try:
        yield client
    finally:
        await client.stop()
        assert is_gone(client.pid)


async def start(path, reserve, load_timeout=60, step_timeout=60, **changes):
    timeouts = {"load_timeout": load_timeout, "step_timeout": step_timeout}
    return await EngineClient.start(spec_of(path, **changes), reserve, **timeouts)


def is_gone(pid):
    """Whether no such process is left, not even a zombie."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


async def until(condition, seconds=20):
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)


def tokens_of(outputs):
    return [token for output in outputs for token in output.tokens]


async def collect(client, prompt, params, **options):
    return [output async for output in outputs_of(client, prompt, params, **options)]


def test_many_requests_stream_side_by_side(model_path):
    async def scenario():
        async with running(model_path) as client:
            params = SamplingParams(temperature=0, max_tokens=6)
            alone = [await collect(client, [id + 1, 5, 6], params) for id in range(6)]
            together = await asyncio.gather(*(collect(client, [id + 1, 5, 6], params) for id in range(6)))
            for one, other in zip(alone, together, strict=True):
                assert tokens_of(one) == tokens_of(other)
                assert len(tokens_of(one)) == 6 and one[-1].finish == FinishReason.LENGTH
            assert client.ready.context_length == 512 and client.ready.block_size == 16
            assert client.healthy() and client.occupancy.steps + client.occupancy.accepted >= 36

    asyncio.run(scenario())


def test_requests_with_different_salts_share_no_prefix(model_path):
    async def scenario():
        async with running(model_path) as client:
            params = SamplingParams(temperature=0, max_tokens=2)
            replies = [await collect(client, [3] * 40, params, salt=salt) for salt in (b"", b"x", b"x", b"")]
            assert [reply[-1].stats.cached_tokens for reply in replies] == [0, 0, 32, 32]
            assert len({tuple(tokens_of(reply)) for reply in replies}) == 1

    asyncio.run(scenario())


def holds_its_blocks(load):
    return load.blocks_used == -(-load.tokens_held // 16) >= 3


async def stand_still(client):
    """Stop the process and hear all that it has said: what it then does is what it does after a message."""
    os.kill(client.pid, signal.SIGSTOP)
    steps = -1
    while steps != client.occupancy.steps:
        steps = client.occupancy.steps
        await asyncio.sleep(0.05)
    return steps


@pytest.mark.parametrize("how", ["close", "cancel"])
def test_leaving_a_stream_frees_its_blocks(model_path, how):
    async def scenario():
        async with running(model_path) as client:
            if how == "close":
                async with aclosing(outputs_of(client, [1] * 33, ENDLESS)) as outputs:
                    await anext(outputs)
                    await anext(outputs)
                    assert holds_its_blocks(client.occupancy)
                    steps = await stand_still(client)
            else:
                task = asyncio.create_task(collect(client, [1] * 33, ENDLESS))
                await until(lambda: holds_its_blocks(client.occupancy))
                steps = await stand_still(client)
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
            os.kill(client.pid, signal.SIGCONT)
            await until(lambda: client.occupancy.blocks_used == 0)
            assert client.occupancy.running == 0 and client.occupancy.steps <= steps + 2

    asyncio.run(scenario())


def test_killed_engine_fails_its_requests_and_says_so(model_path):
    async def scenario():
        async with running(model_path) as client:
            async with aclosing(outputs_of(client, [1, 2], ENDLESS)) as outputs:
                await anext(outputs)
                other = asyncio.create_task(collect(client, [3], ENDLESS))
                await asyncio.sleep(0)
                os.kill(client.pid, signal.SIGKILL)
                with pytest.raises(EngineFailed, match="SIGKILL"):
                    async for _ in outputs:
                        pass
                with pytest.raises(EngineFailed):
                    await other
            assert isinstance(await client.failed, EngineFailed)
            assert not client.healthy()
            with pytest.raises(EngineFailed):
                await collect(client, [1], ENDLESS)

    asyncio.run(scenario())


def test_hung_engine_is_killed_by_the_watchdog(model_path):
    async def scenario():
        async with running(model_path, step_timeout=0.4) as client:
            async with aclosing(outputs_of(client, [1, 2], ENDLESS)) as outputs:
                await anext(outputs)
                os.kill(client.pid, signal.SIGSTOP)
                assert not client.healthy(within=0)
                with pytest.raises(EngineFailed, match=r"no step was made for 0\.4 s"):
                    async for _ in outputs:
                        pass
            assert client.failed.done() and is_gone(client.pid)

    asyncio.run(scenario())


def test_idle_engine_is_not_killed_however_long_it_is_silent(model_path):
    async def scenario():
        async with running(model_path, step_timeout=0.1) as client:
            await collect(client, [1], SamplingParams(max_tokens=1))
            await asyncio.sleep(0.5)
            assert client.healthy(within=0) and not client.failed.done()
            assert await collect(client, [1], SamplingParams(max_tokens=1))

    asyncio.run(scenario())


def test_idle_engine_uses_no_processor(model_path):
    async def scenario():
        async with running(model_path) as client:
            await collect(client, [1], SamplingParams(max_tokens=1))
            await asyncio.sleep(0.8)  # it checks its books once when all is quiet
            before = cpu_ticks(client.pid)
            await asyncio.sleep(1)
            assert cpu_ticks(client.pid) == before

    asyncio.run(scenario())


def cpu_ticks(pid):
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def test_stop_fails_what_is_in_flight_and_leaves_no_process(model_path):
    async def scenario():
        async with running(model_path) as client:
            async with aclosing(outputs_of(client, [1, 2], ENDLESS)) as outputs:
                await anext(outputs)
                await client.stop()
                with pytest.raises(EngineFailed, match="unloaded"):
                    async for _ in outputs:
                        pass
            assert is_gone(client.pid) and not client.failed.done()
            await client.stop()

    asyncio.run(scenario())


def test_stop_of_a_hung_engine_ends_in_force(model_path, monkeypatch):
    monkeypatch.setattr("corral.engine.client._GRACE", 0.2)

    async def scenario():
        async with running(model_path) as client:
            os.kill(client.pid, signal.SIGSTOP)
            await client.stop()
            assert is_gone(client.pid)

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("prompt", "params", "error"),
    [
        ([], ENDLESS, InvalidRequest),
        ([10**6], ENDLESS, InvalidRequest),
        ([2**40], ENDLESS, InvalidRequest),
        ([1] * 512, ENDLESS, PromptTooLong),
        ([1] * 500, SamplingParams(max_tokens=1), InvalidRequest),
    ],
)
def test_impossible_requests_are_refused_before_they_are_sent(model_path, prompt, params, error):
    async def scenario():
        async with running(model_path, kv_bytes=1 << 14) as client:
            with pytest.raises(error):
                await collect(client, prompt, params)
            assert await collect(client, [1], SamplingParams(max_tokens=1))

    asyncio.run(scenario())


def test_more_requests_than_the_queue_takes_are_refused(model_path):
    async def scenario():
        async with running(model_path, max_queue=1) as client:
            async with aclosing(outputs_of(client, [1], ENDLESS)) as outputs:
                await anext(outputs)
                with pytest.raises(Overloaded):
                    await collect(client, [1], ENDLESS)
            assert await collect(client, [1], SamplingParams(max_tokens=1))

    asyncio.run(scenario())


def start_failing(path, reserve=RESERVE, **changes):
    async def scenario():
        before = children()
        try:
            await start(path, reserve, **changes)
        finally:
            assert children() == before

    asyncio.run(scenario())


def children():
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(os.getpid())], capture_output=True, text=True)
    return {pid for pid in found.stdout.split() if Path(f"/proc/{pid}/cmdline").exists() and is_worker(pid)}


def is_worker(pid):
    with contextlib.suppress(OSError):
        return b"corral.engine.worker" in Path(f"/proc/{pid}/cmdline").read_bytes()
    return False


def test_damaged_file_is_reported_as_corrupt(tmp_path, model_path):
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(model_path.read_bytes()[:2000])
    with pytest.raises(CorruptModel):
        start_failing(broken)


def test_unknown_architecture_is_reported_as_unsupported(tmp_path):
    from gguf_files import write_gguf

    path = write_gguf(tmp_path / "strange.gguf", {"general.architecture": "strange"})
    with pytest.raises(UnsupportedModel, match="strange"):
        start_failing(path)


def test_too_little_kv_memory_is_reported_with_both_figures(model_path):
    with pytest.raises(OutOfMemory, match="was given 5000"):
        start_failing(model_path, reserving(5000))


def test_unknown_executor_is_an_engine_failure(model_path):
    with pytest.raises(EngineFailed, match="abacus"):
        start_failing(model_path, executor="abacus")


def test_load_that_takes_too_long_is_ended(model_path):
    async def scenario():
        before = children()
        with pytest.raises(EngineFailed, match="not loaded within"):
            await start(model_path, reserving(KV), load_timeout=0.001)
        assert children() == before

    asyncio.run(scenario())


def test_need_is_told_before_anything_is_taken_and_ready_says_what_was(model_path):
    needs = []

    async def reserve(need):
        needs.append(need)
        return KV

    async def scenario():
        client = await start(model_path, reserve, context_length=256)
        need, (taken,) = needs[0], client.ready.memory.values()
        assert need.memory["cpu"] == replace(taken, kv=0)
        assert need.kv_context == need.kv_least == 256 * 2 * 2 * 2 * 16 * 2
        assert taken.kv == 2 * KV  # the reference executor keeps float32
        await client.stop()

    asyncio.run(scenario())


def test_waiting_for_memory_has_no_part_in_the_load_timeout(model_path):
    async def slow(need):
        await asyncio.sleep(10.5)
        return KV

    async def scenario():
        client = await start(model_path, slow, load_timeout=10)
        await client.stop()

    asyncio.run(scenario())


def test_memory_that_is_refused_fails_the_load_with_that_error(model_path):
    async def refuse(need):
        raise OutOfMemory("no room")

    with pytest.raises(OutOfMemory, match="no room"):
        start_failing(model_path, refuse)


def test_engine_killed_while_it_waits_for_memory_gives_the_wait_up(model_path):
    events = []

    async def wait_for_ever(need):
        (pid,) = children()
        os.kill(int(pid), signal.SIGKILL)
        try:
            await asyncio.sleep(600)
        finally:
            events.append("given up")

    with pytest.raises(EngineFailed, match="SIGKILL while loading"):
        start_failing(model_path, wait_for_ever)
    assert events == ["given up"]


def test_engine_killed_after_memory_was_reserved_is_an_engine_failure(model_path):
    async def kill(need):
        (pid,) = children()
        os.kill(int(pid), signal.SIGSTOP)
        asyncio.get_running_loop().call_later(0.2, os.kill, int(pid), signal.SIGKILL)
        return KV

    with pytest.raises(EngineFailed, match="SIGKILL while loading"):
        start_failing(model_path, kill)


def test_load_that_hangs_after_memory_was_reserved_times_out(model_path):
    async def stop(need):
        (pid,) = children()
        os.kill(int(pid), signal.SIGSTOP)
        return KV

    with pytest.raises(EngineFailed, match="not loaded within 2 s"):
        start_failing(model_path, stop, load_timeout=2)


def test_cancelled_load_leaves_no_process_and_no_wait_for_memory(model_path):
    waiting, events = asyncio.Event(), []

    async def wait_for_ever(need):
        waiting.set()
        try:
            await asyncio.sleep(600)
        finally:
            events.append("given up")

    async def scenario():
        before = children()
        loading = asyncio.create_task(start(model_path, wait_for_ever))
        await waiting.wait()
        loading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await loading
        assert children() == before and events == ["given up"]

    asyncio.run(scenario())


def worker_process(path, answer=GRANTED):
    """A worker with this test at the other end of its socket, which answers its Need."""
    ours, theirs = socket.socketpair()
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-m", "corral.engine.worker", str(theirs.fileno())],
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=(theirs.fileno(),),
        )
    process.stdin.write(msgspec.json.encode(spec_of(path)))
    process.stdin.close()
    assert isinstance(hear(ours), Need)
    ours.sendall(encode_frame(answer))
    if isinstance(answer, Reserve):
        assert isinstance(hear(ours), Ready)
    return process, ours


def hear(connection):
    """The worker's next message."""
    length = frame_length(connection.recv(4, socket.MSG_WAITALL))
    return decode_from_engine(connection.recv(length, socket.MSG_WAITALL))


@pytest.mark.parametrize("answer", [Stop(), Cancel(1)], ids=["stop", "out-of-turn"])
def test_model_that_is_not_wanted_after_all_is_not_loaded(model_path, answer):
    process, ours = worker_process(model_path, answer)
    with ours, process:
        assert process.wait(20) == 0
        assert ours.recv(1) == b""


@pytest.mark.parametrize(
    "garbage",
    [b"\xff" * 64, struct.pack("<I", 0), struct.pack("<I", 5) + b"hello", struct.pack("<I", 9) + b"cut"],
    ids=["too-long", "empty", "no-message", "cut-off"],
)
def test_garbage_on_the_socket_ends_the_engine(model_path, garbage):
    process, ours = worker_process(model_path)
    with ours, process:
        ours.sendall(garbage)
        ours.shutdown(socket.SHUT_WR)
        assert process.wait(20) == 1
        assert b"corral engine:" in process.stderr.read()


def test_closed_socket_ends_the_engine_quietly(model_path):
    process, ours = worker_process(model_path)
    with process:
        ours.close()
        assert process.wait(20) == 0
        assert process.stderr.read() == b""


def test_sigterm_ends_the_engine(model_path):
    process, ours = worker_process(model_path)
    with process, ours:
        process.terminate()
        assert process.wait(20) == -signal.SIGTERM


PARENT = """
import asyncio, os, sys
from corral.engine.client import EngineClient
from corral.engine.protocol import EngineSpec
import msgspec

async def main():
    spec = msgspec.json.decode(sys.argv[1].encode(), type=EngineSpec)
    async def reserve(need):
        return 1 << 20

    client = await EngineClient.start(spec, reserve, load_timeout=60, step_timeout=60)
    print(client.pid, flush=True)
    await asyncio.sleep(600)

asyncio.run(main())
"""


@pytest.mark.parametrize("stopped", [False, True], ids=["idle", "hung"])
def test_death_of_the_parent_leaves_no_orphan(model_path, stopped):
    spec = msgspec.json.encode(spec_of(model_path)).decode()
    with subprocess.Popen([sys.executable, "-c", PARENT, spec], stdout=subprocess.PIPE) as parent:
        pid = int(parent.stdout.readline())
        if stopped:
            os.kill(pid, signal.SIGSTOP)
        parent.kill()
    deadline = time.monotonic() + 20
    while is_running(pid):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def is_running(pid):
    """Whether a process is there and no zombie (who reaps an orphan depends on the machine)."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def test_engine_sees_nothing_of_the_servers_environment(model_path, monkeypatch):
    monkeypatch.setenv("SECRET_API_KEY", "hunter2")

    async def scenario():
        async with running(model_path) as client:
            assert b"hunter2" not in Path(f"/proc/{client.pid}/environ").read_bytes()
            assert (
                Path(f"/proc/{client.pid}/limits").read_text().split("Max core file size")[1].split()[0]
                == "0"
            )

    asyncio.run(scenario())


def test_frames_that_lie_are_refused():
    for header in (b"\xff\xff\xff\xff", b"\0\0\0\0"):
        with pytest.raises(BadFrame):
            frame_length(header)
    for decode in (decode_to_engine, decode_from_engine):
        for body in (b"", b"\xc1", b"\x81\xa4type\xa3add", b"\x93\x01\x02\x03"):
            with pytest.raises(BadFrame):
                decode(body)
