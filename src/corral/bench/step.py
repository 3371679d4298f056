"""Where an engine's step goes: scheduling, packing, the native core by kind of work, bookkeeping, sending.

It runs an engine in this process as the engine process does, with the socket's other end in another process.
"""

import random
import socket
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from corral.bench.tables import Table, digits
from corral.config import Settings
from corral.engine.engine import Engine
from corral.engine.load import load
from corral.engine.protocol import EngineSpec, Step
from corral.engine.wire import encode_frame
from corral.models.table import build_program
from corral.pool.machine import usable_cores
from corral.types import BLOCK_SIZE, SamplingParams
from corral.weights.open import open_source

WARM, MEASURED = 8, 64  # steps
_SPARE = 2048  # tokens of KV for replies that go on while others are still read


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
    program = build_program(open_source(path))
    blocks = -(-tokens // BLOCK_SIZE) * len(program.kv_groups)
    spec = EngineSpec(
        path=str(path),
        threads=settings.threads or usable_cores(),
        batch_tokens=settings.batch_tokens,
        max_sequences=max(settings.max_sequences, *users),
        kv_bytes=blocks * program.kv_block_bytes(),
        isa=settings.isa,
        drafts=False,  # a step is one token a sequence
    )
    engine, _ = load(spec)
    ours, theirs = socket.socketpair()
    with ours, theirs, subprocess.Popen(["cat"], stdin=theirs.fileno(), stdout=subprocess.DEVNULL) as reader:
        try:
            return [_costs(engine, ours, count, prompt) for count in users]
        finally:
            reader.kill()


def _costs(engine: Engine, connection: socket.socket, users: int, prompt: int) -> StepCosts:
    choose = random.Random(users)
    params = SamplingParams(temperature=0, max_tokens=engine.options.context_length - prompt)
    for id in range(users):
        ids = [choose.randrange(10, engine.options.vocab_size) for _ in range(prompt)]
        engine.add(id, ids, params)
    answered: set[int] = set()
    while len(answered) < users:
        answered |= {output.id for output in engine.step()}
    _run(engine, connection, WARM)
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
        outputs = engine.step()
        sending = time.perf_counter()
        connection.sendall(encode_frame(Step(outputs, engine.load)))
        engine.phases["send"] += time.perf_counter() - sending
    total = time.perf_counter() - begun
    parts = {name: (spent - before[name]) / steps * 1e3 for name, spent in engine.phases.items()}
    return total / steps * 1e3, parts


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
