"""What a benchmark found, as kept in JSON files."""

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
    """One load on one server."""

    server: str
    model: str
    load: str
    users: int
    round: int
    figures: dict[str, float]
    problems: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Results:
    """All of it."""

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
        """With this server, in place of one of its name."""
        kept = [each for each in self.servers if each.name != server.name]
        place = next((i for i, each in enumerate(self.servers) if each.name == server.name), len(kept))
        return replace(self, servers=(*kept[:place], server, *kept[place:]))

    def with_measurement(self, measurement: Measurement) -> "Results":
        """With one more measurement."""
        return replace(self, measurements=(*self.measurements, measurement))

    def with_problem(self, problem: str) -> "Results":
        """With one more problem, told once."""
        return self if problem in self.problems else replace(self, problems=(*self.problems, problem))


def encode_results(results: Results) -> bytes:
    """The JSON of a file."""
    return msgspec.json.format(msgspec.json.encode(results), indent=1)


def save(results: Results, path: Path) -> None:
    """Write the file whole or not at all."""
    try:
        partial = path.with_name(f".{path.name}.partial")
        partial.write_bytes(encode_results(results) + b"\n")
        partial.replace(path)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}") from None


def load_results(path: Path) -> Results:
    """Read a file; UserError if it is not one of ours."""
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
    """One result of several; measurements of one server by name are taken together."""
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
    """Those whose fields are as wanted."""
    return [
        each for each in measurements if all(getattr(each, name) == value for name, value in wanted.items())
    ]
