"""The server's side of an engine process: start it, stream from it, watch it, end it."""

import asyncio
import itertools
import logging
import signal
from array import array
from collections.abc import Awaitable, Callable, Sequence
from typing import Self, TypeVar

import msgspec

from corral import errors
from corral.engine.admission import Limits, check_request
from corral.engine.process import EngineProcess
from corral.engine.protocol import (
    Add,
    Cancel,
    EngineSpec,
    FromEngine,
    LoadFailed,
    Need,
    Occupancy,
    Output,
    Ready,
    Reserve,
    Step,
    Stop,
)
from corral.engine.tasks import TaskSet
from corral.engine.wire import HEADER, BadFrame, decode_from_engine, encode_frame, frame_length
from corral.errors import EngineFailed, Overloaded
from corral.types import NO_SCORES, SamplingParams, Scores

log = logging.getLogger(__name__)

Take = Callable[[Output | EngineFailed], None]
ReserveMemory = Callable[[Need], Awaitable[int]]
_Answer = TypeVar("_Answer", Need, Ready)

_GRACE = 2.0  # seconds for a process to end as it was told
_TICKS = 4  # of the watchdog in a step_timeout
_LOAD_ERRORS = (errors.UnsupportedModel, errors.CorruptModel, errors.OutOfMemory)


class EngineClient:
    """One engine process. `failed` is done when it died or hung; it is never used again then."""

    def __init__(self, spec: EngineSpec, process: EngineProcess, step_timeout: float):
        self.spec = spec
        self.occupancy = Occupancy()
        self.ready: Ready  # once it is loaded
        loop = asyncio.get_running_loop()
        self.failed: asyncio.Future[EngineFailed] = loop.create_future()
        self._process = process
        self._transport: asyncio.Transport | None = None
        # What it says while it loads, in order; None = it ended.
        self._answers: asyncio.Queue[FromEngine | BadFrame | None] = asyncio.Queue()
        self._loaded = False
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
        reserve: ReserveMemory,
        *,
        load_timeout: float,
        step_timeout: float,
        process: EngineProcess | None = None,
    ) -> Self:
        """Load a model in a process, a new one unless it is given; raises what the load failed with.

        `reserve` waits until there is memory for what the model needs and gives the bytes of its KV cache;
        it is cancelled if the process ends meanwhile. `load_timeout` is for each half of the load.
        """
        client = cls(spec, process or EngineProcess(), step_timeout)
        try:
            await client._load(reserve, load_timeout)
        except BaseException:
            client._ended = "the model was not loaded"
            await client._end_process(0)
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
        self._start_watchdog()
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

    async def _load(self, reserve: ReserveMemory, timeout: float) -> None:
        self._transport, _ = await asyncio.get_running_loop().create_unix_connection(
            lambda: _Frames(self._take_message, self._lose_connection), sock=self._process.socket
        )
        self._process.give_spec(msgspec.json.encode(self.spec))
        need = await self._within(timeout, self._next_answer(Need))
        ready = asyncio.ensure_future(self._next_answer(Ready))
        reserving = asyncio.ensure_future(reserve(need))
        try:
            await asyncio.wait({ready, reserving}, return_when=asyncio.FIRST_COMPLETED)
            if not ready.done():  # or the process has ended, which says why
                self._write(encode_frame(Reserve(await reserving)))
            self.ready = await self._within(timeout, ready)
        finally:
            ready.cancel()
            reserving.cancel()
            await asyncio.gather(ready, reserving, return_exceptions=True)
        self._limits = Limits(self.ready.context_length, self.ready.vocab_size, self.ready.kv_tokens)

    async def _within(self, timeout: float, answer: Awaitable[_Answer]) -> _Answer:
        try:
            async with asyncio.timeout(timeout):
                return await answer
        except TimeoutError:
            raise EngineFailed(f"the model was not loaded within {timeout:g} s") from None

    async def _next_answer(self, kind: type[_Answer]) -> _Answer:
        """What the process says next, which must be of this kind; raises what the load failed with."""
        answer = await self._answers.get()
        if isinstance(answer, kind):
            return answer
        if isinstance(answer, LoadFailed):
            kinds = {kind.__name__: kind for kind in _LOAD_ERRORS}
            raise kinds.get(answer.kind, EngineFailed)(answer.message)
        if answer is None:
            raise EngineFailed(f"the engine process {await self._process.ending()} while loading the model")
        raise EngineFailed(str(answer) if isinstance(answer, BadFrame) else "the engine spoke out of turn")

    def _take_message(self, message: FromEngine) -> None:
        """Act on a message: give a step's outputs to their requests, all in one go."""
        if not self._loaded:
            self._loaded = isinstance(message, Ready)
            self._answers.put_nowait(message)
            return
        if not isinstance(message, Step):
            raise BadFrame("the engine process loaded twice")
        self._frames += 1
        self._last_frame = asyncio.get_running_loop().time()
        self.occupancy = message.occupancy
        takers = self._takers
        for output in message:
            take = takers.pop(output.id, None) if output.finish else takers.get(output.id)
            if take:
                take(output)

    def _lose_connection(self, error: BadFrame | None) -> None:
        """The process has closed its end, or has sent what is no message."""
        if self._ended:
            return
        if self._loaded:
            self._tasks.start(self._fail("" if error is None else str(error)))
        else:
            self._answers.put_nowait(error)

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

    def _start_watchdog(self) -> None:
        """Watch over requests in flight; without any the clock stands still, and costs nothing."""
        loop = asyncio.get_running_loop()
        if len(self._takers) == 1:
            self._last_frame = loop.time()
        if self._watchdog is None:
            self._watchdog = loop.call_later(
                self._step_timeout / _TICKS, self._check_progress, self._frames, 1
            )

    def _check_progress(self, frames: int, silent: int) -> None:
        """A tick of the watchdog. It counts ticks, not time, as the server itself may have slept."""
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
        self._watchdog = loop.call_later(delay, self._check_progress, self._frames, silent + 1)

    async def _kill_hung(self) -> None:
        self._process.signal(signal.SIGABRT)  # a process that still can prints its stacks
        await self._process.ends_within(0.2)
        await self._fail(f"no step was made for {self._step_timeout:g} s")


class _Frames(asyncio.Protocol):
    """Cuts what comes from an engine into messages for `take`; `lose` gets the end, or what is no message."""

    def __init__(self, take: Callable[[FromEngine], None], lose: Callable[[BadFrame | None], None]):
        self._take_message, self._lose_connection = take, lose
        self._data = bytearray()

    def data_received(self, data: bytes) -> None:
        """Hand over every message that is complete."""
        buffer = self._data
        buffer += data
        try:
            while len(buffer) >= HEADER and len(buffer) >= (end := HEADER + frame_length(buffer[:HEADER])):
                body = buffer[HEADER:end]
                del buffer[:end]
                self._take_message(decode_from_engine(body))
        except BadFrame as error:
            self._lose_connection(error)

    def connection_lost(self, error: Exception | None) -> None:
        """The process has closed its end, or we have closed ours."""
        self._lose_connection(None)
