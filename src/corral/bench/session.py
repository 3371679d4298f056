"""One server measured: its loads at each number of users, and the search for the most users."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from corral.bench.figures import Limits
from corral.bench.loads import LOADS, Job, Load
from corral.bench.machine import ProcessTree
from corral.bench.measure import measure
from corral.bench.prompts import Prompts
from corral.bench.results import Measurement
from corral.bench.search import most_usable
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

    def search(
        self, wanted: Wanted, done: list[Measurement], keep: Callable[[Measurement], None]
    ) -> Measurement:
        """The most users that the standard load leaves usable, beginning from what is measured already."""
        standard = {each.users: each for each in done if each.load == "standard"}

        def usable(users: int) -> bool:
            if users not in standard:
                standard[users] = replace(self.run(wanted, LOADS["standard"], users, 0), load="search")
                keep(standard[users])
            return wanted.limits.met(standard[users].figures)

        known = 0
        for users in sorted(standard):
            if not usable(users):
                break
            known = users
        found = most_usable(usable, wanted.most, known)
        model = self.model or self.target.model
        return Measurement(self.name, model, "usable", found, 0, {"usable_users": found})
