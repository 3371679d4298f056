"""What gate.py measures of two builds: engine steps, starts, memory, served requests, accuracy."""

import asyncio
import contextlib
import json
import subprocess
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np

import accuracy
from corral.bench.dialects import Ask
from corral.bench.launch import Launched, free_port, launched
from corral.bench.measure import run_nicely
from corral.bench.peers import PEERS, Start
from corral.bench.prompts import WORDS, Prompts
from corral.bench.target import Target, TimedReply, ask
from corral.errors import ServiceError
from corral.pool.machine import usable_cores
from gate_builds import Build
from gate_figures import Sample, sample_of

DRIVER = Path(__file__).resolve().parent / "gate_driver.py"
PATIENCE = 300.0  # seconds for a server to start
REST = 1.0  # seconds in which the system takes back the memory of the server before
SERVED_TURNS = 4


@dataclass(frozen=True)
class Requests:
    """Users beside each other, and tokens of the prompt and reply of each."""

    users: int
    prompt: int
    reply: int


BEFORE_MEMORY = Requests(8, 200, 16)
SERVED = {"1": Requests(1, 64, 64), "20": Requests(20, 64, 32)}


@dataclass(frozen=True)
class Subject:
    """A model to measure with."""

    name: str
    model: str  # in the store
    gauges: tuple[str, ...]
    context: int = 512  # tokens before each decoding one
    turns: int = 40  # of a decoding step in a round
    golden: str = ""  # the passages whose truth is known

    def turns_of(self, case: str) -> int:
        """Turns of a case in a round; a prompt takes as long as many steps."""
        return self.turns // 4 if case.startswith("prompt") else self.turns


@dataclass(frozen=True)
class Pair:
    """Two builds, and what both are measured with."""

    old: Build
    new: Build
    subject: Subject
    file: Path
    store: Path
    isa: str

    @property
    def builds(self) -> tuple[Build, Build]:
        """Old, new."""
        return self.old, self.new


Measured = Mapping[str, Sample]
Measure = Callable[[Pair, Collection[str], int], Measured]


@dataclass(frozen=True)
class Gauge:
    """Rows that are measured together. `measure` gives a sample of each case asked for, in round 0, 1, 2."""

    rows: Mapping[str, tuple[str, str, float]]  # case -> what it is, a unit, and how many of them are 1
    measure: Measure
    rounds: int
    exact: bool = False


def in_turns(sides: Sequence[Callable[[int], float]], turns: int) -> Sample:
    """Measure both sides in turns 0, 1, 2 ..., each first in every other one; turn 0 only warms them."""
    times: tuple[list[float], list[float]] = ([], [])
    for turn in range(turns + 1):
        for side in ((0, 1), (1, 0))[turn % 2]:
            times[side].append(sides[side](turn))
    return sample_of(times[0][1:], times[1][1:])


def measure_steps(pair: Pair, cases: Collection[str], _: int) -> Measured:
    """Seconds of engine steps; each round has new processes, as where a process lies in memory counts too."""
    with contextlib.ExitStack() as stack:
        engines = [
            stack.enter_context(contextlib.closing(Engine(build, pair.file, pair.isa, pair.subject.context)))
            for build in pair.builds
        ]
        return {
            case: in_turns([partial(engine.run, case) for engine in engines], pair.subject.turns_of(case))
            for case in cases
        }


class Engine:
    """A build's engine in a process of its own, behind gate_driver.py."""

    def __init__(self, build: Build, file: Path, isa: str, context: int):
        options = {"--isa": isa, "--threads": usable_cores(), "--context": context}
        words = [str(word) for option in options.items() for word in option]
        self._process = subprocess.Popen(
            [build.python, "-P", "-E", str(DRIVER), str(file), *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._build = build
        location = self._read()
        if not Path(location).is_relative_to(build.home):
            raise ServiceError(f"the environment of {build.name} imports {location}")

    def run(self, case: str, turn: int) -> float:
        """Seconds of one step."""
        assert self._process.stdin
        print(case, turn, file=self._process.stdin, flush=True)
        return float(self._read())

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()

    def _read(self) -> str:
        assert self._process.stdout
        line = self._process.stdout.readline().strip()
        if not line:
            raise ServiceError(f"the engine of {self._build.name} ended with status {self._process.wait()}")
        return line


@contextlib.contextmanager
def served(pair: Pair, build: Build) -> Iterator[Launched]:
    """A server of a build that has given its first token."""
    settings = {
        "PYTHONPATH": "",
        "CORRAL_MODELS": str(pair.store),
        "CORRAL_ISA": pair.isa,
        "CORRAL_KV_CACHE": "1G",
        "CORRAL_DRAFTS": "off",
    }
    peer = PEERS["corral"]
    peer = replace(peer, environment=lambda start: settings | PEERS["corral"].environment(start))
    start = Start(build.python, pair.subject.model, "", free_port(), 1, 2048, 0)
    with launched(peer, start, PATIENCE) as started:
        yield started


def measure_starts(pair: Pair, cases: Collection[str], number: int) -> Measured:
    """Seconds from the process' start to the first token, and bytes of both processes after some requests."""
    found: dict[str, dict[int, float]] = {"start": {}, "memory": {}}
    for side in (number % 2, 1 - number % 2):
        time.sleep(REST)
        with served(pair, pair.builds[side]) as started:
            found["start"][side] = started.first_token
            if "memory" in cases:
                time_replies(started.target, BEFORE_MEMORY, number)
                found["memory"][side] = started.tree.memory()
    return {case: sample_of([found[case][0]], [found[case][1]]) for case in cases}


def measure_served(pair: Pair, cases: Collection[str], _: int) -> Measured:
    """Seconds in which so many users beside each other have their replies, through HTTP and text."""
    with contextlib.ExitStack() as stack:
        servers = [stack.enter_context(served(pair, build)) for build in pair.builds]
        return {
            case: in_turns(
                [partial(time_replies, server.target, SERVED[case]) for server in servers], SERVED_TURNS
            )
            for case in cases
        }


def time_replies(target: Target, size: Requests, turn: int) -> float:
    """Seconds until all of the users have their replies; every turn has texts of its own."""
    prompts = Prompts(WORDS, 1, exact=False)
    asks = [Ask(prompts.text(size.prompt, f"{size} {turn} {user}"), size.reply) for user in range(size.users)]

    async def side_by_side() -> list[TimedReply]:
        return list(await asyncio.gather(*(ask(target, each) for each in asks)))

    replies = run_nicely(side_by_side, lambda: None)
    for each in replies:
        if each.error or each.tokens != size.reply:
            raise ServiceError(f"{target.address} gave {each.tokens} of {size.reply} tokens {each.error}")
    return max(each.ended for each in replies) - min(each.began for each in replies)


def measure_accuracy(pair: Pair, cases: Collection[str], _: int) -> Measured:
    """Mean KL divergence from the float32 truth over the golden passages, in nats."""
    goldens = np.load(accuracy.GOLDENS / f"{pair.subject.golden}.npz")
    left_out = json.loads((accuracy.GOLDENS / "llama_cpp.json").read_text())[pair.subject.golden]["left_out"]
    values = [accuracy.measure(scores(pair, build), goldens, left_out) for build in pair.builds]
    old, new = (value["mean_kl"] for value in values)
    return {"kl": sample_of([old], [new])}


def same_bits(pair: Pair) -> str:
    """Whether both builds give the same log-probs to the last bit."""
    rows = [
        (a, b)
        for passage, old in scores(pair, pair.old).items()
        for a, b in zip(old, scores(pair, pair.new)[passage], strict=True)
    ]
    differ = sum(a != b for a, b in rows)
    return f"differ at {differ} of {len(rows)} positions" if differ else f"the same at {len(rows)} positions"


@cache
def scores(pair: Pair, build: Build) -> accuracy.Scores:
    """The 20 likeliest next tokens with their log-probs at each position of every passage."""
    passages: dict[str, Any] = {"random": np.random.default_rng(0).integers(10, 4000, 256)}
    if pair.subject.golden:
        passages = accuracy.passages(np.load(accuracy.GOLDENS / f"{pair.subject.golden}.npz"))
    with served(pair, build) as started:
        return {name: accuracy.score(started.target, tokens) for name, tokens in passages.items()}


GAUGES: Mapping[str, Gauge] = {
    "speed": Gauge(
        {
            "decode1": ("step, 1 user", "ms", 1e3),
            "decode5": ("step, 5 users", "ms", 1e3),
            "decode20": ("step, 20 users", "ms", 1e3),
            "prompt256": ("prompt of 256", "ms", 1e3),
        },
        measure_steps,
        rounds=6,
    ),
    "served": Gauge(
        {"1": ("served, 1 user", "s", 1), "20": ("served, 20 users", "s", 1)}, measure_served, rounds=6
    ),
    "start": Gauge(
        {"start": ("start to first token", "ms", 1e3), "memory": ("memory", "MB", 1e-6)},
        measure_starts,
        rounds=12,
    ),
    "accuracy": Gauge({"kl": ("mean KL", "", 1)}, measure_accuracy, rounds=1, exact=True),
}
SUBJECTS = {
    subject.name: subject
    for subject in (
        Subject("smollm2", "smollm2:135m", ("speed", "served", "start", "accuracy"), golden="smollm2"),
        Subject("llama-1b", "llama-1b:latest", ("speed", "start"), context=128, turns=12),
        Subject("gemma3", "gemma3:270m", ("accuracy",), golden="gemma3"),
    )
}
