"""A server that runs, ready to be measured."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from corral.bench.figures import Limits
from corral.bench.loads import LOADS, Job, Load
from corral.bench.machine import ProcessTree
from corral.bench.measure import measure
from corral.bench.prompts import Prompts
from corral.bench.results import Measurement
from corral.bench.target import Meter, Target


@dataclass(frozen=True, slots=True)
class Wanted:
    """What to measure. No `users` means each load's own."""

    loads: tuple[str, ...] = ("standard",)
    users: tuple[int, ...] = ()
    seed: str = "0"
    size: tuple[int, int] = (512, 256)  # tokens of a prompt and of a reply, in the standard load
    limits: Limits = field(default_factory=Limits)
    most: int = 256  # users that the search tries at most

    def users_of(self, load: Load) -> tuple[int, ...]:
        """The numbers of users for a load."""
        return self.users or load.users


Observer = Callable[[str, Meter | None], None]  # what is being done, and how far it is


@dataclass(frozen=True, slots=True)
class Session:
    """A running server under a name, ready to be measured."""

    name: str
    target: Target
    prompts: Prompts
    tree: ProcessTree | None
    observe: Observer
    model: str = ""  # in results, where the server has its own name for it

    def run(self, wanted: Wanted, load: Load, users: int, turn: int) -> Measurement:
        """Measure one load for one number of users."""
        what = f"{self.name}: {load.name}, {users} user{'s' * (users != 1)}"
        self.observe(what, None)
        seed = f"{wanted.seed} {load.name} {users} {turn}"
        job = Job(self.target, self.prompts, users, seed, wanted.size)
        outcome = measure(load, job, self.tree, lambda meter: self.observe(what, meter))
        model = self.model or self.target.model
        return Measurement(self.name, model, load.name, users, turn, outcome.figures, outcome.problems)

    def search(self, wanted: Wanted, users: int) -> Measurement:
        """Measure the standard load for the search."""
        return replace(self.run(wanted, LOADS["standard"], users, 0), load="search")

    def idle(self, seconds: float) -> Measurement:
        """What the server takes while nobody asks: shares of a core, and memory. Needs its processes."""
        assert self.tree
        self.observe(f"{self.name}: idle for {seconds:.0f} s", None)
        time.sleep(1)  # what it puts in order after the last answer is work
        before = self.tree.cpu()
        time.sleep(seconds)
        figures = {"idle_cpu": (self.tree.cpu() - before) / seconds, "memory": float(self.tree.memory())}
        return Measurement(self.name, self.model or self.target.model, "idle", 0, 0, figures)


def usable(session_name: str, model: str, users: int) -> Measurement:
    """The result of a search."""
    return Measurement(session_name, model, "usable", users, 0, {"usable_users": users})


def notes(target: Target, prompts: Prompts) -> tuple[str, ...]:
    """What a reader should know about figures of this server."""
    found = []
    if not prompts.exact:
        found.append("it does not count tokens, or not as words: a word was taken as one token of a prompt")
    if not target.exact:
        found.append("it cannot be told to go on after the end of a text: replies may end early")
    return tuple(found)
