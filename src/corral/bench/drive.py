"""Measures one server that is running already."""

from collections.abc import Sequence
from dataclasses import dataclass

from corral.bench.address import Address
from corral.bench.ledger import Ledger
from corral.bench.loads import LOADS
from corral.bench.machine import ProcessTree
from corral.bench.measure import run_nicely
from corral.bench.prompts import Prompts, calibrate
from corral.bench.results import Measurement, Server
from corral.bench.session import Observer, Session, Wanted
from corral.bench.target import Target, detect


@dataclass(frozen=True, slots=True)
class Running:
    """A server to be found at an address. `pid` is its process, where that is on this machine."""

    address: Address
    model: str = ""
    api: str = "auto"
    name: str = ""  # in results
    pid: int = 0
    limit: float = 600.0  # seconds for one answer


def drive(
    running: Running, wanted: Wanted, ledger: Ledger, observe: Observer, *, rounds: int, search: bool
) -> None:
    """Run the loads `rounds` times, then search for the most users."""
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
    done = run_loads(session, wanted, range(rounds), ledger)
    if search:
        ledger.add(session.search(wanted, done, ledger.add))


def run_loads(session: Session, wanted: Wanted, turns: Sequence[int], ledger: Ledger) -> list[Measurement]:
    """Every load at every number of users, in every turn."""
    done = []
    for turn in turns:
        for load in (LOADS[name] for name in wanted.loads):
            for users in wanted.users_of(load):
                done.append(session.run(wanted, load, users, turn))
                ledger.add(done[-1])
    return done


async def _open(running: Running) -> tuple[Target, Prompts]:
    target = await detect(running.address, running.model, running.api, running.limit)
    return target, await calibrate(target)


def notes(target: Target, prompts: Prompts) -> tuple[str, ...]:
    """What a reader should know about figures of this server."""
    found = []
    if not prompts.exact:
        found.append("it does not count tokens, or not as words: a word was taken as one token of a prompt")
    if not target.exact:
        found.append(
            "it cannot be told to go on after the end of a text: replies may be shorter than asked for"
        )
    return tuple(found)
