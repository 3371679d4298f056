"""Starts the servers, measures them in turns, and goes on when one fails."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from corral import __version__
from corral.bench.dialects import Ask
from corral.bench.launch import DidNotStart, Started, free_port, launched
from corral.bench.ledger import Ledger
from corral.bench.loads import LOADS, Load
from corral.bench.measure import run_nicely
from corral.bench.peers import Peer, Start
from corral.bench.prompts import Prompts, calibrate
from corral.bench.results import Measurement, Server
from corral.bench.search import search_users
from corral.bench.session import Observer, Session, Wanted, notes, usable
from corral.bench.target import Target, ask, identify
from corral.errors import CorralError
from corral.pool.machine import usable_cores

Case = tuple[Load, int]  # a load and a number of users
Work = Callable[[Session, Started], None]


@dataclass(frozen=True, slots=True)
class Entrant:
    """A server that is installed, and where the models are for it: names to files or folders."""

    peer: Peer
    program: str
    models: dict[str, str]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Plan:
    """What to compare, and how often."""

    models: Sequence[str]
    wanted: Wanted
    rounds: int = 3
    search: bool = False
    idle: float = 0.0  # seconds to watch each server with nothing to do
    patience: float = 600.0  # seconds for a server to start

    def cases(self) -> list[Case]:
        """Every load with each of its numbers of users."""
        loads = [LOADS[name] for name in self.wanted.loads]
        return [(load, users) for load in loads for users in self.wanted.users_of(load)]


class Comparison:
    """One run of a plan. Servers take turns within a round, so that a slow minute meets all of them."""

    def __init__(self, plan: Plan, entrants: Sequence[Entrant], ledger: Ledger, observe: Observer):
        self.plan, self.entrants, self.ledger, self.observe = plan, entrants, ledger, observe
        self._prompts: dict[tuple[str, str], Prompts] = {}
        self._done: list[Measurement] = []

    def run(self) -> None:
        """Measure everything that can be."""
        for model in self.plan.models:
            for turn in range(self.plan.rounds):
                for place, case in enumerate(self.plan.cases()):
                    for entrant in self.entrants:
                        self._turn(entrant, model, turn, place, case)
            for entrant in self.entrants:
                self._afterwards(entrant, model)

    def _turn(self, entrant: Entrant, model: str, turn: int, place: int, case: Case) -> None:
        """What this server does when it is its turn: a lasting one runs all cases at the first."""
        load, users = case
        if entrant.peer.lasting:
            cases = self.plan.cases() if place == 0 else []
        elif entrant.peer.one_slot and load.name == "newcomer" and users > 1:
            return self.ledger.problem(
                f"{entrant.peer.name}: newcomer, as one slot lets only one user stream"
            )
        elif entrant.peer.one_slot and users == 1 and self._same(model, load, turn, entrant):
            return
        else:
            cases = [case]
        if cases:
            self._with(
                entrant,
                model,
                cases[0],
                lambda session, started: self._measure(session, started, cases, turn),
            )

    def _same(self, model: str, load: Load, turn: int, entrant: Entrant) -> bool:
        """With one user, a slot a user is one slot: what was measured of that is taken."""
        for each in self._done:
            at = (each.model, each.load, each.users, each.round)
            if each.server == "llama-server" and at == (model, load.name, 1, turn):
                self._keep(replace(each, server=entrant.peer.name))
                return True
        return False

    def _measure(self, session: Session, started: Started, cases: Sequence[Case], turn: int) -> None:
        for load, users in cases:
            measured = session.run(self.plan.wanted, load, users, turn)
            figures = measured.figures | {"start_to_first_token": started.first_token}
            self._keep(replace(measured, figures=figures))
            if not started.alive:
                name, status = session.name, started.process.returncode
                raise DidNotStart(f"{name} died with status {status} in {load.name} with {users} users")

    def _afterwards(self, entrant: Entrant, model: str) -> None:
        """The search and the idle server, once a model."""
        name = entrant.peer.name
        if self.plan.search and not entrant.peer.one_slot:
            done = [each for each in self._done if (each.server, each.model) == (name, model)]
            wanted = self.plan.wanted
            most = search_users(
                wanted.limits, wanted.most, done, lambda users: self._search(entrant, model, users)
            )
            if any((each.server, each.model) == (name, model) for each in self._done):
                self._keep(usable(name, model, most))
        if self.plan.idle and not entrant.peer.one_slot:
            first = self.plan.cases()[0]
            self._with(entrant, model, first, lambda session, _: self._keep(session.idle(self.plan.idle)))

    def _search(self, entrant: Entrant, model: str, users: int) -> Measurement | None:
        """One try of the search, with a server of its own, as slots are fixed at the start."""
        found: list[Measurement] = []

        def run(session: Session, _: Started) -> None:
            found.append(session.search(self.plan.wanted, users))
            self._keep(found[0])

        self._with(entrant, model, (LOADS["standard"], users), run)
        return found[0] if found else None

    def _with(self, entrant: Entrant, model: str, case: Case, work: Work) -> None:
        """Start a server and measure it; what goes wrong is noted, and the rest goes on."""
        peer, users = entrant.peer, case[1]
        if model not in entrant.models:
            return self.ledger.problem(
                f"{peer.name} with {model}: give its folder with --vllm-model {model}=FOLDER"
            )
        self.observe(f"{peer.name}: starting", None)
        start = self._start(entrant, model, case)
        try:
            with launched(peer, start, self.plan.patience) as started:
                prompts = run_nicely(lambda: self._warm(entrant, started.target), lambda: None)
                found = entrant.notes + notes(started.target, prompts)
                version = asyncio.run(identify(started.target.address))[1] or __version__ * (
                    peer.name == "corral"
                )
                self.ledger.server(Server(peer.name, peer.kind.name, version, peer.in_words(start), found))
                work(Session(peer.name, started.target, prompts, started.tree, self.observe), started)
        except (CorralError, OSError) as error:
            self.ledger.problem(f"{peer.name} with {model}, {users} users: {error}")

    def _start(self, entrant: Entrant, model: str, case: Case) -> Start:
        load, users = case
        context = load.context
        if load.name == "standard":
            context = max(context, -(-sum(self.plan.wanted.size) // 256) * 256)
        return Start(
            entrant.program, model, entrant.models[model], free_port(), users, context, usable_cores()
        )

    async def _warm(self, entrant: Entrant, target: Target) -> Prompts:
        """A request before those that count; the first time also the words."""
        key = (entrant.peer.name, target.model)
        if key not in self._prompts:
            self._prompts[key] = await calibrate(target)
        await ask(target, Ask(self._prompts[key].text(64, f"{self.plan.wanted.seed} warm"), 8))
        return self._prompts[key]

    def _keep(self, measurement: Measurement) -> None:
        self._done.append(measurement)
        self.ledger.add(measurement)
