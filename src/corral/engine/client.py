"""The server's side of an engine process: start it, stream from it, watch it, end it."""

import asyncio
import contextlib
import itertools
import logging
import os
import signal
import socket
import sys
from array import array
from collections.abc import AsyncGenerator, Coroutine
from typing import Self

import msgspec

from corral import errors
from corral.engine.admission import Limits, check_request
from corral.engine.protocol import (
    Add,
    Cancel,
    EngineSpec,
    FromEngine,
    Load,
    LoadFailed,
    Output,
    Ready,
    Step,
    Stop,
    ToEngine,
)
from corral.engine.wire import HEADER, BadFrame, decode_from_engine, encode_frame, frame_length
from corral.errors import EngineFailed, Overloaded
from corral.types import SamplingParams

log = logging.getLogger(__name__)

_Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]

_GRACE = 2.0  # seconds for a process to end as it was told
_TICKS = 4  # looks of the watchdog in a step_timeout
_LOAD_ERRORS = (errors.UnsupportedModel, errors.CorruptModel, errors.OutOfMemory)


class EngineClient:
    """One engine process. `failed` is done when it died or hung; it is never used again then."""

    def __init__(
        self, spec: EngineSpec, process: asyncio.subprocess.Process, streams: _Streams, step_timeout: float
    ):
        self.spec = spec
        self.load = Load()
        self.ready: Ready
        self.failed: asyncio.Future[EngineFailed] = asyncio.get_running_loop().create_future()
        self._process = process
        self._step_timeout = step_timeout
        self._reader, self._writer = streams
        self._limits: Limits
        self._streams: dict[int, asyncio.Queue[Output | EngineFailed]] = {}
        self._ids = itertools.count(1)
        self._ended = ""  # why it takes no more requests
        self._frames = 0
        self._last_frame = 0.0
        self._watchdog: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    @classmethod
    async def start(cls, spec: EngineSpec, *, load_timeout: float, step_timeout: float) -> Self:
        """Start a process and wait until its model is loaded; raises what the load failed with."""
        ours, theirs = socket.socketpair()
        with theirs:
            streams = await asyncio.open_unix_connection(sock=ours)
            try:
                process = await _spawn(theirs)
            except BaseException:
                streams[1].close()
                raise
        client = cls(spec, process, streams, step_timeout)
        try:
            async with asyncio.timeout(load_timeout):
                await client._load()
        except BaseException as error:
            await client._end_process(0)
            if isinstance(error, TimeoutError):
                raise EngineFailed(f"the model was not loaded within {load_timeout:g} s") from None
            raise
        client._run(client._read_steps())
        return client

    @property
    def pid(self) -> int:
        """The process's id."""
        return self._process.pid

    def healthy(self, within: float = 30.0) -> bool:
        """Whether the engine is idle, or has made a step in the last seconds."""
        if self._ended:
            return False
        return not self._streams or asyncio.get_running_loop().time() - self._last_frame < within

    async def generate(self, prompt: list[int], params: SamplingParams) -> AsyncGenerator[Output, None]:
        """A request's outputs, the last one with `finish`. Closing or cancelling this cancels the request.

        Raises InvalidRequest, PromptTooLong or Overloaded at once, EngineFailed at any time.
        """
        if self._ended:
            raise EngineFailed(self._ended)
        if len(self._streams) >= self.spec.max_queue:
            raise Overloaded(f"{len(self._streams)} requests are waiting or running; try again later")
        check_request(prompt, params, self._limits)
        id = next(self._ids)
        frame = encode_frame(Add(id, array("i", prompt).tobytes(), params))
        inbox = self._streams[id] = asyncio.Queue()
        self._writer.write(frame)
        self._watch()
        try:
            while True:
                output = await _next(inbox)
                if output.finish:
                    self._streams.pop(id, None)
                yield output
                if output.finish:
                    return
        finally:
            if self._streams.pop(id, None):
                self._send(Cancel(id))

    async def stop(self) -> None:
        """End the process: politely, then by force. Requests in flight get EngineFailed."""
        self._send(Stop())
        self._end_streams("the model was unloaded")
        await self._end_process(_GRACE)

    async def _load(self) -> None:
        stdin = self._process.stdin
        assert stdin is not None
        stdin.write(msgspec.json.encode(self.spec))
        stdin.close()
        try:
            answer = await self._receive()
        except (asyncio.IncompleteReadError, ConnectionError):
            status = await self._process.wait()
            raise EngineFailed(f"the engine process {_ending(status)} while loading the model") from None
        except BadFrame as error:
            raise EngineFailed(str(error)) from None
        if isinstance(answer, LoadFailed):
            kinds = {kind.__name__: kind for kind in _LOAD_ERRORS}
            raise kinds.get(answer.kind, EngineFailed)(answer.message)
        if not isinstance(answer, Ready):
            raise EngineFailed("the engine process answered before it was ready")
        self.ready = answer
        kv_tokens = answer.num_blocks * answer.block_size
        self._limits = Limits(answer.context_length, answer.vocab_size, kv_tokens)

    async def _receive(self) -> FromEngine:
        header = await self._reader.readexactly(HEADER)
        return decode_from_engine(await self._reader.readexactly(frame_length(header)))

    async def _read_steps(self) -> None:
        """Give every frame's outputs to their requests, until the process or its senses are gone."""
        reason = ""
        try:
            while True:
                step = await self._receive()
                if not isinstance(step, Step):
                    raise BadFrame("the engine process loaded twice")
                self._frames += 1
                self._last_frame = asyncio.get_running_loop().time()
                self.load = step.load
                for output in step.outputs:
                    inbox = self._streams.get(output.id)
                    if inbox:
                        inbox.put_nowait(output)
        except BadFrame as error:
            reason = str(error)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        await self._fail(reason)

    async def _fail(self, reason: str = "") -> None:
        """The engine is unusable: make sure that it is gone, and tell everybody who waits for it."""
        if self._ended:
            return
        self._ended = "the engine is being restarted"
        await self._end_process(0 if reason else _GRACE)
        reason = reason or f"its process {_ending(self._process.returncode)}"
        log.error("engine %d for %s: %s", self.pid, self.spec.path, reason)
        self._end_streams(f"the engine failed: {reason}")
        self.failed.set_result(EngineFailed(self._ended))

    def _end_streams(self, reason: str) -> None:
        self._ended = reason
        streams, self._streams = self._streams, {}
        for inbox in streams.values():
            inbox.put_nowait(EngineFailed(self._ended))

    async def _end_process(self, grace: float) -> None:
        """Wait, then terminate, then kill. Returns when the process is gone and reaped."""
        if self._watchdog:
            self._watchdog.cancel()
        if grace and not await self._exits_within(grace):
            self._signal(signal.SIGTERM)
        if not grace or not await self._exits_within(grace):
            self._signal(signal.SIGKILL)
        await self._process.wait()
        self._writer.close()

    async def _exits_within(self, seconds: float) -> bool:
        try:
            async with asyncio.timeout(seconds):
                await self._process.wait()
        except TimeoutError:
            return False
        return True

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(number)

    def _send(self, message: ToEngine) -> None:
        if not self._ended and not self._writer.is_closing():
            self._writer.write(encode_frame(message))

    def _watch(self) -> None:
        """Look after requests in flight: with none the clock stands still, and costs nothing."""
        loop = asyncio.get_running_loop()
        if len(self._streams) == 1:
            self._last_frame = loop.time()
        if self._watchdog is None:
            self._watchdog = loop.call_later(self._step_timeout / _TICKS, self._look, self._frames, 1)

    def _look(self, frames: int, silent: int) -> None:
        """The watchdog counts its own ticks, so that a server that slept itself does not kill at once."""
        self._watchdog = None
        if not self._streams or self._ended:
            return
        if self._frames != frames:
            silent = 0
        if silent >= _TICKS:
            self._run(self._kill_hung())
            return
        delay = self._step_timeout / _TICKS
        loop = asyncio.get_running_loop()
        self._watchdog = loop.call_later(delay, self._look, self._frames, silent + 1)

    async def _kill_hung(self) -> None:
        self._signal(signal.SIGABRT)  # a process that still can prints its stacks
        await self._exits_within(0.2)
        await self._fail(f"no step was made for {self._step_timeout:g} s")

    def _run(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)  # or it could be collected while it runs
        task.add_done_callback(self._tasks.discard)


async def _next(inbox: asyncio.Queue[Output | EngineFailed]) -> Output:
    """What came since the last look, as one output: a reader that lags catches up in one go."""
    output = await inbox.get()
    while not inbox.empty() and not isinstance(output, EngineFailed) and not output.finish:
        later = inbox.get_nowait()
        if isinstance(later, EngineFailed):
            raise later
        output = msgspec.structs.replace(
            later,
            tokens=output.tokens + later.tokens,
            logprobs=output.logprobs + later.logprobs,
            prompt_logprobs=output.prompt_logprobs or later.prompt_logprobs,
            stats=later.stats or output.stats,
        )
    if isinstance(output, EngineFailed):
        raise output
    return output


async def _spawn(theirs: socket.socket) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-P",  # the current folder is no place to import from
        "-m",
        "corral.engine.worker",
        str(theirs.fileno()),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.DEVNULL,
        pass_fds=(theirs.fileno(),),
        env=_environment(),
        start_new_session=True,  # Ctrl-C is for the server, which lets requests finish
    )


def _environment() -> dict[str, str]:
    """Nothing of the server's own environment: an engine has no use for keys and proxies."""
    return {
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "PYTHONUTF8": "1",
        "OPENBLAS_NUM_THREADS": "1",  # numpy would make threads and buffers that nothing uses
    }


def _ending(status: int | None) -> str:
    if status is not None and status < 0:
        return f"was ended by {signal.Signals(-status).name}"
    return f"ended with status {status}"
