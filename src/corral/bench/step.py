"""Where an engine's step goes: scheduling, packing, the native core by kind of work, bookkeeping, sending.

It runs an engine in this process as the engine process does, with the socket's other end in another process.
With an executor that does nothing what remains is the Python of a step, which every executor pays.
"""

import contextlib
import random
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from corral.bench.tables import Table, digits
from corral.config import Settings
from corral.engine.engine import Engine, EngineOptions
from corral.engine.load import open_model
from corral.engine.protocol import EngineSpec
from corral.engine.wire import HEADER, decode_from_engine, encode_frame
from corral.executors.batch import Batch, SamplingRows, StepResult
from corral.models.cache import CacheSpec, PagedGroup
from corral.pool.machine import usable_cores
from corral.types import BLOCK_SIZE, MAX_TOP_LOGPROBS, SamplingParams

WARM, MEASURED = 8, 64  # steps
_SPARE = 2048  # tokens of KV for replies that go on while others are still read
ROUNDS, ROUND = 200, 8  # how often the engine alone is measured, and steps of each time


@dataclass(frozen=True, slots=True)
class StepCosts:
    """Milliseconds a step with `users` sequences: all of it, each part, and native work by its kind."""

    users: int
    total: float
    parts: dict[str, float]
    native: dict[str, float]

    @property
    def outside(self) -> float:
        """What is not the native core's work."""
        return self.total - sum(self.native.values())


def step_costs(path: Path, settings: Settings, users: Sequence[int], prompt: int) -> list[StepCosts]:
    """Decode with each number of sequences, `prompt` tokens long at the beginning."""
    tokens = max(users) * (prompt + WARM + MEASURED + _SPARE)
    spec = EngineSpec(
        path=str(path),
        threads=settings.threads or usable_cores(),
        batch_tokens=settings.batch_tokens,
        max_sequences=max(settings.max_sequences, *users),
        isa=settings.isa,
        drafts=False,  # a step is one token a sequence
    )
    model = open_model(spec)
    engine, _ = model.load(model.program.cache.bytes_needed(tokens, tokens))
    with _peer() as connection:
        return [_costs(engine, connection, count, prompt) for count in users]


def engine_costs(users: Sequence[int], prompt: int) -> list[StepCosts]:
    """The same with an executor that does nothing: the best of ROUNDS, so that a busy machine tells the same.

    "receive" is what the server spends on a frame: not in the total, as another process does it.
    """
    with _peer() as connection:
        return [_engine_costs(connection, count, prompt) for count in users]


class NullExecutor:
    """Takes no time and gives tokens that look random: no guess at them comes true."""

    cache = CacheSpec((PagedGroup(window=None, layers=(0,), pool=0),), block_bytes=(1,))

    def __init__(self, num_blocks: int, max_tokens: int, vocab_size: int):
        self.num_blocks: tuple[int, ...] = (num_blocks,)
        self.max_tokens, self.vocab_size = max_tokens, vocab_size
        self._steps = 0

    def submit(self, batch: Batch) -> None:
        """There is nothing to begin."""

    def collect(self, sampling: SamplingRows) -> StepResult:
        """Tokens without a model."""
        rows = len(sampling.columns)
        self._steps += 1
        tokens = (self._steps * 69069 + np.arange(rows, dtype=np.int32) * 7919) % self.vocab_size
        zeros = np.zeros((rows, MAX_TOP_LOGPROBS), np.float32)
        return StepResult(tokens.astype(np.int32), zeros[:, 0], zeros.view(np.int32), zeros)

    def buffer(self, index: int) -> NDArray[Any]:
        """Nothing is computed."""
        raise IndexError(index)

    def close(self) -> None:
        """There is nothing to give back."""


@contextlib.contextmanager
def _peer() -> Iterator[socket.socket]:
    """A socket whose other end another process reads."""
    ours, theirs = socket.socketpair()
    with ours, theirs, subprocess.Popen(["cat"], stdin=theirs.fileno(), stdout=subprocess.DEVNULL) as reader:
        try:
            yield ours
        finally:
            reader.kill()


def _engine_costs(connection: socket.socket, users: int, prompt: int) -> StepCosts:
    length = prompt + WARM + (ROUNDS + 2) * ROUND + ROUNDS
    vocab_size, batch_tokens = 100_003, users * prompt  # all prompts are read in one step
    blocks = users * (length // BLOCK_SIZE + 1)
    options = EngineOptions(length, vocab_size, batch_tokens, max_sequences=users)
    engine = Engine(NullExecutor(blocks, batch_tokens, vocab_size), options)
    # Of other lengths, so that in each step as many of them begin a new block.
    _begin(engine, connection, [max(1, prompt - id % BLOCK_SIZE) for id in range(users)])
    total, parts = min((_run(engine, connection, ROUND) for _ in range(ROUNDS)), key=itemgetter(0))
    parts["receive"] = min(_receive(engine, users) for _ in range(ROUNDS)) * 1e3
    return StepCosts(users, total, parts, {})


def _receive(engine: Engine, users: int) -> float:
    """Seconds that the server's side takes for a step's frame."""
    frame = encode_frame(engine.step())
    begun = time.perf_counter()
    message: Any = decode_from_engine(frame[HEADER:])
    takers = dict.fromkeys(range(users), id)
    for output in message:
        take = takers.get(output.id)
        if take:
            take(output)
    return time.perf_counter() - begun


def _begin(engine: Engine, connection: socket.socket, prompts: Sequence[int]) -> None:
    """Let sequences decode whose prompts have these lengths."""
    choose = random.Random(len(prompts))
    most = engine.options.context_length - max(prompts)
    for id, prompt in enumerate(prompts):
        ids = [choose.randrange(10, engine.options.vocab_size) for _ in range(prompt)]
        engine.add(id, ids, SamplingParams(temperature=0, max_tokens=most))
    answered: set[int] = set()
    while len(answered) < len(prompts):
        answered |= {output.id for output in engine.step()}
    _run(engine, connection, WARM)


def _costs(engine: Engine, connection: socket.socket, users: int, prompt: int) -> StepCosts:
    _begin(engine, connection, [prompt] * users)
    executor: Any = engine.executor
    executor.profile(True)
    total, parts = _run(engine, connection, MEASURED)
    native = {kind: spent / MEASURED * 1e3 for kind, spent in executor.profile_seconds().items()}
    executor.profile(False)
    for id in range(users):
        engine.cancel(id)
    parts["binding"] = parts.pop("executor") - sum(native.values())
    return StepCosts(users, total, parts, native)


def _run(engine: Engine, connection: socket.socket, steps: int) -> tuple[float, dict[str, float]]:
    """Milliseconds a step in all, and of each of the engine's parts."""
    before = dict(engine.phases)
    begun = time.perf_counter()
    for _ in range(steps):
        step = engine.step()
        sending = time.perf_counter()
        connection.sendall(encode_frame(step))
        engine.phases["send"] += time.perf_counter() - sending
    total = time.perf_counter() - begun
    parts = {name: (spent - before[name]) / steps * 1e3 for name, spent in engine.phases.items()}
    return total / steps * 1e3, parts


def engine_table(costs: Sequence[StepCosts]) -> Table:
    """Parts as rows, numbers of sequences as columns, in microseconds a sequence."""
    rows = [
        ("a step", *(f"{cost.total * 1e3 / cost.users:.2f}" for cost in costs)),
        *(
            (name, *(f"{cost.parts[name] * 1e3 / cost.users:.2f}" for cost in costs))
            for name in costs[0].parts
        ),
    ]
    headings = (
        "µs a sequence a step",
        *(f"{cost.users} sequence{'s' * (cost.users != 1)}" for cost in costs),
    )
    return Table("an executor that does nothing: the Python of a step", headings, tuple(rows))


def step_table(model: str, costs: Sequence[StepCosts]) -> Table:
    """Parts as rows, numbers of sequences as columns, in milliseconds."""
    kinds = dict.fromkeys(
        kind for cost in costs for kind in sorted(cost.native, key=lambda k: -cost.native[k])
    )
    rows = [
        ("a step", *(digits(cost.total) for cost in costs)),
        *((f"native: {kind}", *(digits(cost.native.get(kind, 0.0)) for cost in costs)) for kind in kinds),
        *((name, *(digits(cost.parts[name]) for cost in costs)) for name in costs[0].parts),
        ("outside the native core", *(digits(cost.outside) for cost in costs)),
        ("share outside", *(f"{100 * cost.outside / cost.total:.1f} %" for cost in costs)),
    ]
    headings = ("ms a step", *(f"{cost.users} sequence{'s' * (cost.users != 1)}" for cost in costs))
    return Table(f"{model}: where a step goes", headings, tuple(rows))
