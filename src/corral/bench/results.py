"""The results of a benchmark, and the JSON files that keep them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec

from corral.errors import UserError

FORMAT = 1


@dataclass(frozen=True, slots=True)
class Server:
    """A server that was measured: its name in tables, what it is, and how it was started."""

    name: str
    kind: str
    version: str = ""
    command: str = ""  # or where it was found running
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Measurement:
    """The figures of one workload, named `load`, on one server."""

    server: str
    model: str
    load: str
    users: int
    round: int
    figures: dict[str, float]
    problems: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Results:
    """All that one benchmark found."""

    format: int = FORMAT
    made: str = ""
    corral: str = ""
    command: str = ""
    seed: str = ""
    size: tuple[int, int] = (512, 256)
    machine: dict[str, str] = field(default_factory=dict)
    servers: tuple[Server, ...] = ()
    measurements: tuple[Measurement, ...] = ()
    problems: tuple[str, ...] = ()  # servers that are not installed, or did not start

    def with_server(self, server: Server) -> "Results":
        """These results with `server` added, in place of one with its name."""
        kept = [each for each in self.servers if each.name != server.name]
        place = next((i for i, each in enumerate(self.servers) if each.name == server.name), len(kept))
        return replace(self, servers=(*kept[:place], server, *kept[place:]))

    def with_measurement(self, measurement: Measurement) -> "Results":
        """These results with one more measurement."""
        return replace(self, measurements=(*self.measurements, measurement))

    def with_problem(self, problem: str) -> "Results":
        """These results with one more problem, unless they have it already."""
        return self if problem in self.problems else replace(self, problems=(*self.problems, problem))


def encode_results(results: Results) -> bytes:
    """The results as JSON."""
    return msgspec.json.format(msgspec.json.encode(results), indent=1)


def save(results: Results, path: Path) -> None:
    """Write the results to a file, whole or not at all; UserError if it cannot be written."""
    try:
        partial = path.with_name(f".{path.name}.partial")
        partial.write_bytes(encode_results(results) + b"\n")
        partial.replace(path)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}") from None


def load_results(path: Path) -> Results:
    """The results in a file; UserError if `corral bench --json` did not write it."""
    try:
        results = msgspec.json.decode(path.read_bytes(), type=Results)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except msgspec.DecodeError as error:
        raise UserError(f"{path} is not a result of `corral bench --json`: {error}") from None
    if results.format != FORMAT:
        raise UserError(f"{path} is of format {results.format}, this version reads {FORMAT}: measure again")
    return results


def merge(parts: Sequence[Results]) -> Results:
    """The results of several files as one; servers of one name are one server."""
    whole = parts[0]
    for part in parts[1:]:
        for server in part.servers:
            whole = whole.with_server(server)
        for problem in part.problems:
            whole = whole.with_problem(problem)
        whole = replace(whole, measurements=whole.measurements + part.measurements)
        if part.machine != whole.machine:
            whole = whole.with_problem(f"not all measured on one machine: also {_in_words(part.machine)}")
    commands = dict.fromkeys(part.command for part in parts)
    return replace(whole, command="\n".join(commands))


def _in_words(machine: dict[str, str]) -> str:
    return ", ".join(machine.values())


def selected(measurements: Iterable[Measurement], **wanted: object) -> list[Measurement]:
    """The measurements whose fields equal those `wanted`."""
    return [
        each for each in measurements if all(getattr(each, name) == value for name, value in wanted.items())
    ]
