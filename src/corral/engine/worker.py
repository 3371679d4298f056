"""The engine process: `python -m corral.engine.worker FD` with an EngineSpec as JSON on standard input.

On the inherited socket FD it speaks engine/protocol: it loads one model, and then answers requests until the
server says Stop, closes the socket, or dies. It opens no network and has no secret in its environment.
"""

import contextlib
import faulthandler
import gc
import os
import queue
import resource
import select
import signal
import socket
import sys
import threading
import time
import traceback
from array import array
from typing import NoReturn

import msgspec

from corral.engine.engine import Engine
from corral.engine.load import import_ahead, open_model
from corral.engine.parent import die_with_parent
from corral.engine.protocol import (
    Add,
    Cancel,
    EngineSpec,
    FromEngine,
    LoadFailed,
    Output,
    Reserve,
    Step,
)
from corral.engine.wire import BadFrame, encode_frame, receive
from corral.errors import CorralError, OutOfMemory
from corral.types import FinishReason

_QUIET = 0.5  # seconds
_OK, _BROKEN_PEER, _LOAD_FAILED = 0, 1, 2


def main(arguments: list[str]) -> int:
    """Run the process; its exit status."""
    gc.disable()  # what is made until the model is loaded stays
    _harden()
    connection = socket.socket(fileno=int(arguments[1]))
    import_ahead()
    text = sys.stdin.buffer.read()
    if not text:
        return _OK  # the server ended without a model for us
    spec = msgspec.json.decode(text, type=EngineSpec)
    try:
        engine = _load(spec, connection)
    except Exception as error:
        _send(connection, _failure(error))
        if not isinstance(error, CorralError):
            raise
        return _LOAD_FAILED
    if engine is None:
        return _OK
    gc.freeze()  # a step's collections need not walk what stays
    gc.enable()
    return answer_requests(engine, connection)


def _load(spec: EngineSpec, connection: socket.socket) -> Engine | None:
    """Load a model in two halves, and forget its files; None if the server does not want it after all."""
    model = open_model(spec)
    _send(connection, model.need)
    answer = receive(connection)
    if not isinstance(answer, Reserve):
        return None
    engine, ready = model.load(answer.kv_bytes)
    _send(connection, ready)
    return engine


def _harden() -> None:
    """Die with the server, leave no core dump of other people's prompts, and let the server see to Ctrl-C."""
    die_with_parent()
    if sys.platform == "linux":
        with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
            file.write("500")  # short of memory, the system should take an engine and not the server
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    faulthandler.enable()


def answer_requests(engine: Engine, connection: socket.socket) -> int:
    """Answer requests until the server is gone."""
    inbox: queue.SimpleQueue[Add | Cancel] = queue.SimpleQueue()
    threading.Thread(target=_read_messages, args=(connection, inbox), daemon=True).start()
    arrivals = select.poll()
    arrivals.register(connection, select.POLLIN)
    while True:
        refused = []
        if not engine.has_work and inbox.empty():
            refused += _take(engine, _sleep(engine, inbox))
        # What has arrived counts before the next step, also where the reader thread has not come to it yet.
        while not inbox.empty() or arrivals.poll(0):
            refused += _take(engine, inbox.get())
        step = engine.step()
        step.outputs.extend(refused)
        begun = time.perf_counter()
        _send_step(connection, step)
        engine.phases["send"] += time.perf_counter() - begun


def _sleep(engine: Engine, inbox: queue.SimpleQueue[Add | Cancel]) -> Add | Cancel:
    """The next message. The books are checked when it is so quiet that nobody waits for the check."""
    try:
        return inbox.get(timeout=_QUIET)
    except queue.Empty:
        engine.check()
        return inbox.get()


def _take(engine: Engine, message: Add | Cancel) -> list[Output]:
    """Act on one message; an output if it is a request that the engine refuses."""
    match message:
        case Add():
            try:
                prompt = array("i", message.prompt).tolist()
                engine.add(message.id, prompt, message.params, message.scores, message.salt)
            except CorralError as error:
                return [Output(id=message.id, finish=FinishReason.ERROR, error=str(error))]
        case Cancel():
            engine.cancel(message.id)
    return []


def _read_messages(connection: socket.socket, inbox: queue.SimpleQueue[Add | Cancel]) -> None:
    """The reader thread. It ends the process itself, as the main thread may be deep in a step."""
    try:
        while isinstance(message := receive(connection), Add | Cancel):
            inbox.put(message)
    except ConnectionError:
        _exit(_OK)  # closed with something unread
    except (BadFrame, OSError) as error:
        print(f"corral engine: {error}", file=sys.stderr, flush=True)
        _exit(_BROKEN_PEER)
    except BaseException:  # without this thread the engine would be deaf, and seem idle
        traceback.print_exc()
        _exit(_BROKEN_PEER)
    _exit(_OK)


def _send_step(connection: socket.socket, step: Step) -> None:
    """One frame, or one an output where several long ones (scored prompts) fell together."""
    try:
        _send(connection, step)
    except BadFrame:
        for output in step:
            _send(connection, Step(step.occupancy, [output]))


def _send(connection: socket.socket, message: FromEngine) -> None:
    try:
        connection.sendall(encode_frame(message))
    except OSError:  # the server is gone, and with it everybody who waits for an answer
        _exit(_BROKEN_PEER)


def _exit(status: int) -> NoReturn:
    """Leave at once: threads in native code need not be asked, and the system takes the memory back."""
    sys.stderr.flush()
    os._exit(status)


def _failure(error: Exception) -> LoadFailed:
    if isinstance(error, CorralError):
        return LoadFailed(type(error).__name__, str(error))
    if isinstance(error, MemoryError):
        return LoadFailed(OutOfMemory.__name__, "there is not enough memory for the model's weights")
    return LoadFailed("EngineFailed", f"the model could not be loaded: {type(error).__name__}: {error}")


if __name__ == "__main__":
    sys.exit(main(sys.argv))
