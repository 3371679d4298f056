"""Measures one server that runs already."""

from collections.abc import Sequence
from dataclasses import dataclass

from corral.bench.address import Address
from corral.bench.ledger import Ledger
from corral.bench.machine import ProcessTree
from corral.bench.measure import run_nicely
from corral.bench.prompts import Prompts, calibrate
from corral.bench.results import Measurement, Server
from corral.bench.search import search_users
from corral.bench.session import Observer, Session, Wanted, notes, usable
from corral.bench.target import Target, detect
from corral.bench.workloads import WORKLOADS


@dataclass(frozen=True, slots=True)
class Running:
    """A server that runs at an address. `pid` is its process if that is on this machine, else 0."""

    address: Address
    model: str = ""
    api: str = "auto"
    name: str = ""  # in results
    pid: int = 0
    limit: float = 600.0  # seconds for one answer


def drive(
    running: Running, wanted: Wanted, ledger: Ledger, observe: Observer, *, rounds: int, search: bool
) -> None:
    """Run the workloads `rounds` times, then search for the most users."""
    observe(f"{running.address}: finding out what answers", None)
    target, prompts = run_nicely(lambda: _open(running), lambda: None)
    name = running.name or (
        str(running.address) if target.kind.name in ("other", "plain") else target.kind.name
    )
    tree = ProcessTree(running.pid) if running.pid else None
    ledger.server(
        Server(name, target.kind.name, target.version, str(running.address), notes(target, prompts))
    )
    session = Session(name, target, prompts, tree, observe)
    done = run_workloads(session, wanted, range(rounds), ledger)
    if search:

        def run(users: int) -> Measurement:
            ledger.add(session.search(wanted, users))
            return ledger.results.measurements[-1]

        found = search_users(wanted.patience, wanted.most, done, run)
        ledger.add(usable(name, target.model, found))


def run_workloads(
    session: Session, wanted: Wanted, turns: Sequence[int], ledger: Ledger
) -> list[Measurement]:
    """Measure every workload with every number of users, once a turn."""
    done = []
    for turn in turns:
        for workload in (WORKLOADS[name] for name in wanted.loads):
            for users in wanted.users_of(workload):
                done.append(session.run(wanted, workload, users, turn))
                ledger.add(done[-1])
    return done


async def _open(running: Running) -> tuple[Target, Prompts]:
    target = await detect(running.address, running.model, running.api, running.limit)
    return target, await calibrate(target)
