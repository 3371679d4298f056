"""The server's side of an engine process: start it, stream from it, watch it, end it."""

import asyncio
import itertools
import logging
import signal
from array import array
from collections.abc import Callable, Sequence
from typing import Self

import msgspec

from corral import errors
from corral.engine.admission import Limits, check_request
from corral.engine.process import EngineProcess
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
)
from corral.engine.tasks import TaskSet
from corral.engine.wire import HEADER, BadFrame, decode_from_engine, encode_frame, frame_length
from corral.errors import EngineFailed, Overloaded
from corral.types import NO_SCORES, SamplingParams, Scores

log = logging.getLogger(__name__)

Take = Callable[[Output | EngineFailed], None]

_GRACE = 2.0  # seconds for a process to end as it was told
_TICKS = 4  # looks of the watchdog in a step_timeout
_LOAD_ERRORS = (errors.UnsupportedModel, errors.CorruptModel, errors.OutOfMemory)


class EngineClient:
    """One engine process. `failed` is done when it died or hung; it is never used again then."""

    def __init__(self, spec: EngineSpec, process: EngineProcess, step_timeout: float):
        self.spec = spec
        self.load = Load()
        self.ready: Ready
        loop = asyncio.get_running_loop()
        self.failed: asyncio.Future[EngineFailed] = loop.create_future()
        self._process = process
        self._transport: asyncio.Transport | None = None
        self._answer: asyncio.Future[FromEngine | None] = loop.create_future()  # to the load; None = it ended
        self._step_timeout = step_timeout
        self._limits: Limits
        self._takers: dict[int, Take] = {}
        self._ids = itertools.count(1)
        self._ended = ""  # why it takes no more requests
        self._frames = 0
        self._last_frame = 0.0
        self._watchdog: asyncio.TimerHandle | None = None
        self._tasks = TaskSet()

    @classmethod
    async def start(
        cls,
        spec: EngineSpec,
        *,
        load_timeout: float,
        step_timeout: float,
        process: EngineProcess | None = None,
    ) -> Self:
        """Load a model in a process, a new one unless it is given; raises what the load failed with."""
        client = cls(spec, process or EngineProcess(), step_timeout)
        try:
            async with asyncio.timeout(load_timeout):
                await client._load()
        except BaseException as error:
            client._ended = "the model was not loaded"
            await client._end_process(0)
            if isinstance(error, TimeoutError):
                raise EngineFailed(f"the model was not loaded within {load_timeout:g} s") from None
            raise
        return client

    @property
    def pid(self) -> int:
        """The process's id."""
        return self._process.pid

    def healthy(self, within: float = 30.0) -> bool:
        """Whether the engine is idle, or has made a step in the last seconds."""
        if self._ended:
            return False
        return not self._takers or asyncio.get_running_loop().time() - self._last_frame < within

    def submit(
        self,
        prompt: Sequence[int],
        params: SamplingParams,
        take: Take,
        scores: Scores = NO_SCORES,
        salt: bytes = b"",
    ) -> int:
        """Start a request; its id. `take`, which must not raise, is given its outputs as they come, the last
        one with `finish`, or EngineFailed. Requests with different salts share no cached prefix.

        Raises InvalidRequest, PromptTooLong, Overloaded or EngineFailed.
        """
        if self._ended:
            raise EngineFailed(self._ended)
        if len(self._takers) >= self.spec.max_queue:
            raise Overloaded(f"{len(self._takers)} requests are waiting or running; try again later")
        check_request(prompt, params, self._limits, scores)
        id = next(self._ids)
        frame = encode_frame(Add(id, array("i", prompt).tobytes(), params, scores, salt))
        self._takers[id] = take
        self._write(frame)
        self._watch()
        return id

    def cancel(self, id: int) -> None:
        """Forget a request; one that has ended is no mistake."""
        if self._takers.pop(id, None):
            self._write(encode_frame(Cancel(id)))

    async def stop(self) -> None:
        """End the process: politely, then by force. Requests in flight get EngineFailed."""
        self._write(encode_frame(Stop()))
        self._end_streams("the model was unloaded")
        await self._end_process(_GRACE)

    async def _load(self) -> None:
        self._transport, _ = await asyncio.get_running_loop().create_unix_connection(
            lambda: _Frames(self._take, self._lose), sock=self._process.socket
        )
        self._process.give(msgspec.json.encode(self.spec))
        answer = await self._answer
        if answer is None:
            raise EngineFailed(f"the engine process {await self._process.ending()} while loading the model")
        if isinstance(answer, LoadFailed):
            kinds = {kind.__name__: kind for kind in _LOAD_ERRORS}
            raise kinds.get(answer.kind, EngineFailed)(answer.message)
        if not isinstance(answer, Ready):
            raise EngineFailed("the engine process answered before it was ready")
        self.ready = answer
        self._limits = Limits(answer.context_length, answer.vocab_size, answer.kv_tokens)

    def _take(self, message: FromEngine) -> None:
        """Act on a message: give a step's outputs to their requests, all in one go."""
        if not self._answer.done():
            self._answer.set_result(message)
            return
        if not isinstance(message, Step):
            raise BadFrame("the engine process loaded twice")
        self._frames += 1
        self._last_frame = asyncio.get_running_loop().time()
        self.load = message.load
        takers = self._takers
        for output in message:
            take = takers.pop(output.id, None) if output.finish else takers.get(output.id)
            if take:
                take(output)

    def _lose(self, error: BadFrame | None) -> None:
        """The process has closed its end, or does not make sense."""
        if self._ended:
            return
        if self._answer.done():
            self._tasks.start(self._fail("" if error is None else str(error)))
        elif error is None:
            self._answer.set_result(None)
        else:
            self._answer.set_exception(EngineFailed(str(error)))

    async def _fail(self, reason: str = "") -> None:
        """The engine is unusable: make sure that it is gone, and tell everybody who waits for it."""
        if self._ended:
            return
        self._ended = "the engine is being restarted"
        await self._end_process(0 if reason else _GRACE)
        reason = reason or f"its process {await self._process.ending()}"
        log.error("engine %d for %s: %s", self.pid, self.spec.path, reason)
        self._end_streams(f"the engine failed: {reason}")
        self.failed.set_result(EngineFailed(self._ended))

    def _end_streams(self, reason: str) -> None:
        self._ended = reason
        takers, self._takers = self._takers, {}
        for take in takers.values():
            take(EngineFailed(self._ended))

    async def _end_process(self, grace: float) -> None:
        """Wait, then terminate, then kill. Returns when the process is gone and reaped."""
        if self._watchdog:
            self._watchdog.cancel()
        process = self._process
        if grace and not await process.ends_within(grace):
            process.signal(signal.SIGTERM)
        if not grace or not await process.ends_within(grace):
            process.signal(signal.SIGKILL)
        await process.ending()
        (self._transport or process.socket).close()

    def _write(self, frame: bytes) -> None:
        if self._transport and not self._ended and not self._transport.is_closing():
            self._transport.write(frame)

    def _watch(self) -> None:
        """Look after requests in flight: with none the clock stands still, and costs nothing."""
        loop = asyncio.get_running_loop()
        if len(self._takers) == 1:
            self._last_frame = loop.time()
        if self._watchdog is None:
            self._watchdog = loop.call_later(self._step_timeout / _TICKS, self._look, self._frames, 1)

    def _look(self, frames: int, silent: int) -> None:
        """The watchdog counts its own ticks, so that a server that slept itself does not kill at once."""
        self._watchdog = None
        if not self._takers or self._ended:
            return
        if self._frames != frames:
            silent = 0
        if silent >= _TICKS:
            self._tasks.start(self._kill_hung())
            return
        delay = self._step_timeout / _TICKS
        loop = asyncio.get_running_loop()
        self._watchdog = loop.call_later(delay, self._look, self._frames, silent + 1)

    async def _kill_hung(self) -> None:
        self._process.signal(signal.SIGABRT)  # a process that still can prints its stacks
        await self._process.ends_within(0.2)
        await self._fail(f"no step was made for {self._step_timeout:g} s")


class _Frames(asyncio.Protocol):
    """Cuts what comes from an engine into messages. `lose` is told of the end, and of what is no message."""

    def __init__(self, take: Callable[[FromEngine], None], lose: Callable[[BadFrame | None], None]):
        self._take, self._lose = take, lose
        self._data = bytearray()

    def data_received(self, data: bytes) -> None:
        """Hand over every message that is complete."""
        buffer = self._data
        buffer += data
        try:
            while len(buffer) >= HEADER and len(buffer) >= (end := HEADER + frame_length(buffer[:HEADER])):
                body = buffer[HEADER:end]
                del buffer[:end]
                self._take(decode_from_engine(body))
        except BadFrame as error:
            self._lose(error)

    def connection_lost(self, error: Exception | None) -> None:
        """The process has gone, or we have hung up."""
        self._lose(None)
