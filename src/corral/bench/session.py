"""Measurements of a server that runs."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from corral.bench.figures import Patience
from corral.bench.machine import ProcessTree
from corral.bench.measure import measure
from corral.bench.prompts import Prompts
from corral.bench.results import Measurement
from corral.bench.target import Meter, Target
from corral.bench.workloads import WORKLOADS, Job, Workload


@dataclass(frozen=True, slots=True)
class Wanted:
    """What to measure of a server. Empty `users` means each workload's own numbers."""

    loads: tuple[str, ...] = ("standard",)
    users: tuple[int, ...] = ()
    seed: str = "0"
    size: tuple[int, int] = (512, 256)  # tokens of a prompt and of a reply, in the standard workload
    patience: Patience = field(default_factory=Patience)
    most: int = 256  # users that the search tries at most

    def users_of(self, workload: Workload) -> tuple[int, ...]:
        """The numbers of users to measure a workload with."""
        return self.users or workload.users


Observer = Callable[[str, Meter | None], None]  # what is being done, and how far it is


@dataclass(frozen=True, slots=True)
class Session:
    """A running server under a name, ready to be measured."""

    name: str
    target: Target
    prompts: Prompts
    tree: ProcessTree | None
    observe: Observer

    def run(self, wanted: Wanted, workload: Workload, users: int, turn: int) -> Measurement:
        """Measure one workload for one number of users."""
        load = workload.name
        what = f"{self.name}: {load}, {users} user{'s' * (users != 1)}"
        self.observe(what, None)
        job = Job(self.target, self.prompts, users, f"{wanted.seed} {load} {users} {turn}", wanted.size)
        outcome = measure(workload, job, self.tree, lambda meter: self.observe(what, meter))
        return Measurement(self.name, self.target.model, load, users, turn, outcome.figures, outcome.problems)

    def search(self, wanted: Wanted, users: int) -> Measurement:
        """Measure the standard workload for the search."""
        return replace(self.run(wanted, WORKLOADS["standard"], users, 0), load="search")

    def idle(self, seconds: float) -> Measurement:
        """Measure the CPU (in cores) and memory that the idle server takes; `tree` must be known."""
        assert self.tree
        self.observe(f"{self.name}: idle for {seconds:.0f} s", None)
        time.sleep(1)  # after the last answer a server still has something to put in order
        before = self.tree.cpu()
        time.sleep(seconds)
        figures = {"idle_cpu": (self.tree.cpu() - before) / seconds, "memory": float(self.tree.memory())}
        return Measurement(self.name, self.target.model, "idle", 0, 0, figures)


def usable(session_name: str, model: str, users: int) -> Measurement:
    """The result of a search, as a measurement."""
    return Measurement(session_name, model, "usable", users, 0, {"usable_users": users})


def notes(target: Target, prompts: Prompts) -> tuple[str, ...]:
    """What readers should know about this server's figures."""
    found = []
    if not prompts.exact:
        found.append("it does not count tokens, or not as words: a word was taken as one token of a prompt")
    if not target.exact:
        found.append("it cannot be told to go on after the end of a text: replies may end early")
    return tuple(found)
