"""`corral bench`."""

import argparse
import json
import secrets
import shlex
import shutil
import signal
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from corral.bench.address import parse_address
from corral.bench.compare import Agenda, Comparison, Entrant
from corral.bench.dialects import DIALECTS
from corral.bench.drive import Running, drive
from corral.bench.figures import Patience
from corral.bench.ledger import Ledger
from corral.bench.page import make_page
from corral.bench.peers import PEERS
from corral.bench.results import Results, encode_results, load_results, merge, save
from corral.bench.session import Wanted
from corral.bench.tables import ratio_tables, result_tables
from corral.bench.workloads import USERS, WORKLOADS
from corral.cli.bench_display import Display, print_tables
from corral.cli.client import Client
from corral.cli.exits import OK, UsageError
from corral.cli.serve import fetch
from corral.config import DEFAULT_MODEL, Settings
from corral.store import words
from corral.store.local import Store

ENGINE_USERS = (64, 256)  # sequences that `bench step` runs without a model


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare what to measure, how, and where the results go."""
    parser.add_argument(
        "what",
        nargs="*",
        metavar="URL | compare | step | report FILE...",
        help="measure a running server (default: OLLAMA_HOST); start several servers and compare them; "
        "tell where a step of the engine goes (with --model that model's, else Python's part alone); "
        "or show results of --json again, several files together",
    )
    parser.add_argument(
        "--model", "--models", type=_words, default=(), metavar="NAME", help="the model to ask for"
    )
    parser.add_argument("--users", type=_numbers, default=(), help="users side by side (default: 1,5,10,20)")
    loads = "; ".join(f"{load.name}: {load.about}" for load in WORKLOADS.values())
    parser.add_argument("--load", type=_names, default=("standard",), dest="loads", help=f"loads. {loads}")
    parser.add_argument("--rounds", type=int, default=0, help="how often to measure (default: 1, compare: 3)")
    parser.add_argument(
        "--search",
        action=argparse.BooleanOptionalAction,
        help="search for the most users that stay usable (default: yes, compare: no)",
    )
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
    parser.add_argument(
        "--idle", type=float, default=0.0, metavar="S", help="also watch the idle server so long"
    )
    _configure_server(parser)
    _configure_compare(parser)
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


def _configure_compare(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("compare")
    group.add_argument(
        "--servers", type=_peers, default=tuple(PEERS), help=f"which (default: {','.join(PEERS)})"
    )
    group.add_argument("--llama-server", default="", metavar="PATH", help="its program (default: from PATH)")
    group.add_argument("--vllm", default="", metavar="PATH", help="its program (default: from PATH)")
    group.add_argument(
        "--vllm-model",
        action="append",
        default=[],
        metavar="NAME=FOLDER",
        help=f"a model as vLLM reads it: {words.A_FOLDER}",
    )
    group.add_argument(
        "--start-timeout", type=float, default=600.0, metavar="S", help="for a server to start"
    )


def _configure_output(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("results")
    group.add_argument(
        "--json", nargs="?", const="-", default="", metavar="FILE", help="write JSON to FILE, or print it"
    )
    group.add_argument("--html", default="", metavar="FILE", help="write a page with plots")


def run(arguments: argparse.Namespace, settings: Settings) -> int:
    """Run the benchmark that the arguments name, and print its tables."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # servers that we started must not stay
    first, *rest = arguments.what or [""]
    if first == "report":
        merged = merge([load_results(Path(name)) for name in _results_given(rest)])
        if arguments.json not in ("", "-"):
            save(merged, Path(arguments.json))
        return _show(merged, arguments)
    if first == "step":
        return _step(arguments, settings)
    if rest:
        raise UsageError(f"'{rest[0]}' is one argument too many; see `corral bench --help`")
    wanted = _wanted(arguments)
    path = Path(arguments.json) if arguments.json not in ("", "-") else None
    with Display() as display:
        ledger = Ledger(_command(), wanted.seed, wanted.size, path, display.measured)
        try:
            if first == "compare":
                _compare(arguments, settings, wanted, ledger, display)
            else:
                url = first or Client.of(settings).address
                _measure_running(arguments, url, wanted, ledger, display)
        except KeyboardInterrupt:
            if not ledger.results.measurements:
                raise
            ledger.problem("the rest: interrupted")
    return _show(ledger.results, arguments)


def _measure_running(
    arguments: argparse.Namespace, url: str, wanted: Wanted, ledger: Ledger, display: Display
) -> None:
    if len(arguments.model) > 1:
        raise UsageError("a running server is measured with one model at a time")
    address = parse_address(url, arguments.api_key)
    model = "".join(arguments.model)
    running = Running(address, model, arguments.api, arguments.name, arguments.pid, arguments.timeout)
    search = arguments.search is not False
    drive(running, wanted, ledger, display.observe, rounds=arguments.rounds or 1, search=search)


def _compare(
    arguments: argparse.Namespace, settings: Settings, wanted: Wanted, ledger: Ledger, display: Display
) -> None:
    models = arguments.model or (DEFAULT_MODEL,)
    store = Store(settings.models)
    for model in models:
        fetch(store, settings, model)
    files = {model: str(store.find(model).path) for model in models}
    programs = {"llama-server": arguments.llama_server, "vllm": arguments.vllm}
    entrants = []
    for name in arguments.servers:
        peer = PEERS[name]
        program = programs.get(peer.program) or shutil.which(peer.program)
        if not program:
            ledger.problem(f"{name} is not installed: {peer.remedy}")
            continue
        theirs = _folders(arguments.vllm_model, models) if peer.lasting else files
        entrants.append(Entrant(peer, program, theirs, _settings(settings) if name == "corral" else ()))
    agenda = Agenda(
        models, wanted, arguments.rounds or 3, bool(arguments.search), arguments.idle, arguments.start_timeout
    )
    Comparison(agenda, entrants, ledger, display.observe).run()


def _step(arguments: argparse.Namespace, settings: Settings) -> int:
    from corral.bench.step import engine_costs, engine_table, step_costs, step_table

    tables = []
    if not arguments.model:
        tables.append(engine_table(engine_costs(arguments.users or ENGINE_USERS, arguments.size[0])))
    for model in arguments.model:
        path = Store(settings.models).find(model).path
        users = arguments.users or USERS
        tables.append(step_table(model, step_costs(path, settings, users, arguments.size[0])))
    if arguments.json:
        _write(arguments.json, json.dumps([asdict(table) for table in tables], indent=2))
    if arguments.json != "-":
        print_tables(tables)
    return OK


def _settings(settings: Settings) -> tuple[str, ...]:
    """The engine's settings that the environment changes, as `name: value`."""
    names = ("isa", "threads", "batch_tokens", "max_sequences", "kv_cache", "context_length")
    default = Settings()
    changed = [name for name in names if getattr(settings, name) != getattr(default, name)]
    return tuple(f"{name}: {getattr(settings, name)}" for name in changed)


def _folders(given: Sequence[str], models: Sequence[str]) -> dict[str, str]:
    """vLLM's folder of each model, from texts NAME=FOLDER; a folder alone is for the only model."""
    found = {}
    for text in given:
        name, equals, folder = text.rpartition("=")
        if not equals and len(models) > 1:
            raise UsageError(f"--vllm-model {text}: say for which model, like {models[0]}={text}")
        if not Path(folder).is_dir():
            raise UsageError(f"--vllm-model {text}: '{folder}' is not a folder")
        found[name or models[0]] = folder
    return found


def _results_given(files: Sequence[str]) -> Sequence[str]:
    if not files:
        raise UsageError("which results? `corral bench report A.json B.json --html report.html`")
    return files


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
        patience=Patience(arguments.min_rate, arguments.max_first),
        most=arguments.most,
    )


def _show(results: Results, arguments: argparse.Namespace) -> int:
    if arguments.html:
        _write(arguments.html, make_page(results))
    if arguments.json == "-":
        print(encode_results(results).decode())
    else:
        print_tables([*result_tables(results), *ratio_tables(results)])
        for problem in results.problems:
            print(f"not measured: {problem}", file=sys.stderr)
    return OK


def _write(name: str, text: str) -> None:
    """Print `text` where `name` is `-`, else write it to that file."""
    if name == "-":
        print(text)
        return
    try:
        Path(name).write_text(text, "utf-8")
    except OSError as error:
        raise UsageError(f"{name} cannot be written: {error.strerror}") from None


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


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


def _names(text: str) -> tuple[str, ...]:
    return _known(text.split(","), tuple(WORKLOADS))


def _peers(text: str) -> tuple[str, ...]:
    return _known(text.split(","), tuple(PEERS))


def _known(names: Sequence[str], choices: tuple[str, ...]) -> tuple[str, ...]:
    for name in names:
        if name not in choices:
            raise argparse.ArgumentTypeError(f"'{name}' is not one of {', '.join(choices)}")
    return tuple(names)
