"""`corral bench`."""

import argparse
import secrets
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from corral.bench.address import parse_address
from corral.bench.dialects import DIALECTS
from corral.bench.drive import Running, drive
from corral.bench.figures import Limits
from corral.bench.ledger import Ledger
from corral.bench.loads import LOADS
from corral.bench.results import Results
from corral.bench.session import Wanted
from corral.bench.tables import ratio_tables, result_tables
from corral.cli.bench_display import Display, print_tables
from corral.cli.client import Client
from corral.cli.exits import OK, UsageError
from corral.config import Settings


def configure(parser: argparse.ArgumentParser) -> None:
    """What to measure, how, and where the results go."""
    parser.add_argument("what", nargs="*", metavar="URL", help="a running server (default: OLLAMA_HOST)")
    parser.add_argument("--model", default="", help="the model to ask for")
    parser.add_argument("--users", type=_numbers, default=(), help="users side by side (default: 1,5,10,20)")
    loads = "; ".join(f"{load.name}: {load.about}" for load in LOADS.values())
    parser.add_argument("--load", type=_names, default=("standard",), dest="loads", help=f"loads. {loads}")
    parser.add_argument("--rounds", type=int, default=0, help="how often to measure (default: 1)")
    parser.add_argument("--no-search", action="store_true", help="leave out the search for the most users")
    parser.add_argument(
        "--min-rate", type=float, default=5.0, metavar="N", help="usable: tokens/s for every user"
    )
    parser.add_argument(
        "--max-first", type=float, default=10.0, metavar="S", help="usable: seconds to the first token"
    )
    parser.add_argument("--most", type=int, default=256, help="users that the search tries at most")
    parser.add_argument(
        "--size", type=_numbers, default=(512, 256), help="tokens: PROMPT,REPLY (default: 512,256)"
    )
    parser.add_argument("--seed", default="", help="makes the same prompts again")
    parser.add_argument("--timeout", type=float, default=600.0, metavar="S", help="for one answer")
    _configure_server(parser)
    _configure_output(parser)


def _configure_server(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("a running server")
    group.add_argument(
        "--api", choices=("auto", *DIALECTS), default="auto", help="the API to use (default: find out)"
    )
    group.add_argument("--name", default="", help="what to call the server in results")
    group.add_argument(
        "--pid", type=int, default=0, help="its process on this machine, to measure its memory"
    )
    group.add_argument("--api-key", default="", help="sent as a bearer token")


def _configure_output(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("results")
    group.add_argument(
        "--json", nargs="?", const="-", default="", metavar="FILE", help="write JSON to FILE, or print it"
    )
    group.add_argument("--html", type=Path, metavar="FILE", help="write a page with plots")


def run(arguments: argparse.Namespace, settings: Settings) -> int:
    """Measure, and print the tables."""
    wanted = _wanted(arguments)
    with Display() as display:
        path = Path(arguments.json) if arguments.json not in ("", "-") else None
        ledger = Ledger(_command(), wanted.seed, wanted.size, path, display.measured)
        try:
            _measure_running(arguments, settings, wanted, ledger, display)
        finally:
            results = ledger.results
    return _show(results, arguments)


def _measure_running(
    arguments: argparse.Namespace, settings: Settings, wanted: Wanted, ledger: Ledger, display: Display
) -> None:
    if len(arguments.what) > 1:
        raise UsageError(f"one server at a time: '{arguments.what[1]}' is one too many")
    url = arguments.what[0] if arguments.what else Client.of(settings).address
    address = parse_address(url, arguments.api_key)
    running = Running(
        address, arguments.model, arguments.api, arguments.name, arguments.pid, arguments.timeout
    )
    drive(
        running, wanted, ledger, display.observe, rounds=arguments.rounds or 1, search=not arguments.no_search
    )


def _wanted(arguments: argparse.Namespace) -> Wanted:
    if len(arguments.size) != 2:
        raise UsageError("--size takes two numbers, PROMPT,REPLY, like 512,256")
    for name in ("min_rate", "max_first", "most", "timeout"):
        if not getattr(arguments, name) > 0:
            raise UsageError(f"--{name.replace('_', '-')} must be more than 0")
    if arguments.rounds < 0:
        raise UsageError("--rounds must be at least 1")
    return Wanted(
        loads=arguments.loads,
        users=arguments.users,
        seed=arguments.seed or secrets.token_hex(4),  # a server that we measured before knows the old prompts
        size=arguments.size,
        limits=Limits(arguments.min_rate, arguments.max_first),
        most=arguments.most,
    )


def _show(results: Results, arguments: argparse.Namespace) -> int:
    if arguments.json == "-":
        import msgspec

        print(msgspec.json.format(msgspec.json.encode(results), indent=2).decode())
    else:
        print_tables([*result_tables(results), *ratio_tables(results)])
        for problem in results.problems:
            print(f"not measured: {problem}", file=sys.stderr)
    return OK


def _command() -> str:
    return shlex.join(["corral", *sys.argv[1:]])


def _numbers(text: str) -> tuple[int, ...]:
    try:
        numbers = tuple(int(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if not numbers or min(numbers) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a list of numbers like 1,5,10,20")
    return numbers


def _names(text: str) -> tuple[str, ...]:
    return _known(text.split(","), tuple(LOADS))


def _known(names: Sequence[str], choices: tuple[str, ...]) -> tuple[str, ...]:
    for name in names:
        if name not in choices:
            raise argparse.ArgumentTypeError(f"'{name}' is not one of {', '.join(choices)}")
    return tuple(names)
