"""Compares servers: starts them, measures them in turns, and goes on when one fails."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from corral import __version__
from corral.bench.dialects import Ask
from corral.bench.launch import DidNotStart, Launched, free_port, launched
from corral.bench.ledger import Ledger
from corral.bench.measure import run_nicely
from corral.bench.peers import Peer, Start
from corral.bench.prompts import Prompts, calibrate
from corral.bench.results import Measurement, Server
from corral.bench.search import search_users
from corral.bench.session import Observer, Session, Wanted, notes, usable
from corral.bench.target import Target, ask, identify
from corral.bench.workloads import WORKLOADS, Workload
from corral.errors import CorralError
from corral.pool.machine import usable_cores

Case = tuple[Workload, int]  # a workload and a number of users
Work = Callable[[Session, Launched], None]


@dataclass(frozen=True, slots=True)
class Entrant:
    """An installed server to compare, and the file or folder of each model in a format that it reads."""

    peer: Peer
    program: str
    models: dict[str, str]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Agenda:
    """What a comparison measures, and how often."""

    models: Sequence[str]
    wanted: Wanted
    rounds: int = 3
    search: bool = False
    idle: float = 0.0  # seconds to watch each server with nothing to do
    start_limit: float = 600.0  # seconds for a server to start

    def cases(self) -> list[Case]:
        """Every workload with each of its numbers of users."""
        workloads = [WORKLOADS[name] for name in self.wanted.loads]
        return [(workload, users) for workload in workloads for users in self.wanted.users_of(workload)]


class Comparison:
    """One run of an agenda. Servers take turns within a round, so that a slow minute meets all of them."""

    def __init__(self, agenda: Agenda, entrants: Sequence[Entrant], ledger: Ledger, observe: Observer):
        self.agenda, self.entrants, self.ledger, self.observe = agenda, entrants, ledger, observe
        self._prompts: dict[tuple[str, str], Prompts] = {}
        self._done: list[Measurement] = []

    def run(self) -> None:
        """Measure every case of the agenda; what fails is noted in the ledger."""
        cases = self.agenda.cases()
        for model in self.agenda.models:
            for turn in range(self.agenda.rounds):
                for case in cases:
                    for entrant in self.entrants:
                        if not entrant.peer.lasting:
                            self._measure_case(entrant, model, turn, case)
                        elif case == cases[0]:
                            self._measure(entrant, model, turn, cases)
            for entrant in self.entrants:
                self._search_and_idle(entrant, model)

    def _measure_case(self, entrant: Entrant, model: str, turn: int, case: Case) -> None:
        """Measure one case, unless one slot makes it impossible or equal to what has been measured."""
        workload, users = case
        if entrant.peer.one_slot and workload.name == "newcomer" and users > 1:
            self.ledger.problem(f"{entrant.peer.name}: newcomer, as one slot lets only one user stream")
        elif not (entrant.peer.one_slot and users == 1 and self._copy(entrant, model, turn, workload)):
            self._measure(entrant, model, turn, [case])

    def _copy(self, entrant: Entrant, model: str, turn: int, workload: Workload) -> bool:
        """Take what llama-server gave for one user, if it was measured: one slot is all that it had, too."""
        for each in self._done:
            at = (each.server, each.model, each.load, each.users, each.round)
            if at == ("llama-server", model, workload.name, 1, turn):
                self._keep(replace(each, server=entrant.peer.name))
                return True
        return False

    def _measure(self, entrant: Entrant, model: str, turn: int, cases: Sequence[Case]) -> None:
        """Measure cases with one start of the server."""

        def work(session: Session, started: Launched) -> None:
            for workload, users in cases:
                measured = session.run(self.agenda.wanted, workload, users, turn)
                figures = measured.figures | {"start_to_first_token": started.first_token}
                self._keep(replace(measured, figures=figures))
                if not started.alive:
                    died = f"{session.name} died with status {started.process.returncode}"
                    raise DidNotStart(f"{died} in {workload.name} with {users} users")

        self._with_server(entrant, model, cases[0], work)

    def _search_and_idle(self, entrant: Entrant, model: str) -> None:
        """Search for the most users, and watch the idle server, where the agenda asks for it."""
        name, wanted = entrant.peer.name, self.agenda.wanted
        if entrant.peer.one_slot:
            return
        if self.agenda.search:
            done = [each for each in self._done if (each.server, each.model) == (name, model)]
            most = search_users(
                wanted.patience, wanted.most, done, lambda users: self._search(entrant, model, users)
            )
            if any((each.server, each.model) == (name, model) for each in self._done):
                self._keep(usable(name, model, most))
        if self.agenda.idle:
            first = self.agenda.cases()[0]
            self._with_server(
                entrant, model, first, lambda session, _: self._keep(session.idle(self.agenda.idle))
            )

    def _search(self, entrant: Entrant, model: str, users: int) -> Measurement | None:
        """Measure one number of users for the search, with a new server, as slots are fixed at the start."""
        found: list[Measurement] = []

        def work(session: Session, _: Launched) -> None:
            found.append(session.search(self.agenda.wanted, users))
            self._keep(found[0])

        self._with_server(entrant, model, (WORKLOADS["standard"], users), work)
        return found[0] if found else None

    def _with_server(self, entrant: Entrant, model: str, case: Case, work: Work) -> None:
        """Start a server and let `work` measure it; a failure is noted, and the comparison goes on."""
        peer, users = entrant.peer, case[1]
        if model not in entrant.models:
            return self.ledger.problem(
                f"{peer.name} with {model}: give its folder with --vllm-model {model}=FOLDER"
            )
        self.observe(f"{peer.name}: starting", None)
        start = self._start(entrant, model, case)
        try:
            with launched(peer, start, self.agenda.start_limit) as started:
                prompts = run_nicely(lambda: self._warm(entrant, started.target), lambda: None)
                version = asyncio.run(identify(started.target.address))[1]
                if peer.name == "corral":
                    version = version or __version__
                found = entrant.notes + notes(started.target, prompts)
                self.ledger.server(Server(peer.name, peer.kind.name, version, peer.in_words(start), found))
                work(Session(peer.name, started.target, prompts, started.tree, self.observe), started)
        except (CorralError, OSError) as error:
            self.ledger.problem(f"{peer.name} with {model}, {users} users: {error}")

    def _start(self, entrant: Entrant, model: str, case: Case) -> Start:
        workload, users = case
        context = workload.context
        if workload.name == "standard":
            context = max(context, -(-sum(self.agenda.wanted.size) // 256) * 256)
        return Start(
            entrant.program, model, entrant.models[model], free_port(), users, context, usable_cores()
        )

    async def _warm(self, entrant: Entrant, target: Target) -> Prompts:
        """Send a request before those that count; the first time, find the words of prompts too."""
        key = (entrant.peer.name, target.model)
        if key not in self._prompts:
            self._prompts[key] = await calibrate(target)
        await ask(target, Ask(self._prompts[key].text(64, f"{self.agenda.wanted.seed} warm"), 8))
        return self._prompts[key]

    def _keep(self, measurement: Measurement) -> None:
        self._done.append(measurement)
        self.ledger.add(measurement)
