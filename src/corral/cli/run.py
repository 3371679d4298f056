"""`corral run`: once, from a pipe, or as a conversation."""

import argparse
import json
import sys
from typing import Any

from corral.cli.chat import Chat, print_statistics, write
from corral.cli.client import Client
from corral.cli.exits import OK, ApiError, UsageError
from corral.cli.models import open_models
from corral.cli.private import any_server
from corral.cli.progress import follow
from corral.config import Settings
from corral.store import words
from corral.store.pull import is_local_file, is_source, name_for

# Flag -> Ollama's option and its type.
_OPTIONS: dict[str, tuple[str, type]] = {
    "--temperature": ("temperature", float),
    "--top-k": ("top_k", int),
    "--top-p": ("top_p", float),
    "--min-p": ("min_p", float),
    "--repeat-penalty": ("repeat_penalty", float),
    "--presence-penalty": ("presence_penalty", float),
    "--frequency-penalty": ("frequency_penalty", float),
    "--seed": ("seed", int),
    "--max-tokens": ("num_predict", int),
    "--context": ("num_ctx", int),
}
_NOT_YET = ("format", "think")


def configure(parser: argparse.ArgumentParser) -> None:
    """The model, the prompt, and how to sample."""
    parser.add_argument("model", help=words.MODELS)
    parser.add_argument("prompt", nargs="*", default=[], help="ask this once; without it, a conversation")
    parser.add_argument("--system", default="", help="the system message")
    parser.add_argument("--keepalive", metavar="TIME", help="keep the model in memory so long, like 5m")
    parser.add_argument("-v", "--verbose", action="store_true", help="print times and rates")
    group = parser.add_argument_group("sampling")
    for flag, (option, kind) in _OPTIONS.items():
        group.add_argument(flag, dest=option, type=kind, metavar="N")
    group.add_argument("--stop", action="append", metavar="TEXT", help="end the reply here (may be repeated)")
    for name in _NOT_YET:
        parser.add_argument(f"--{name}", nargs="?", const="true", help=argparse.SUPPRESS)


def run(arguments: argparse.Namespace, settings: Settings) -> int:
    """Find a server and the model, then ask or talk."""
    for name in _NOT_YET:
        if getattr(arguments, name) is not None:
            raise UsageError(f"--{name} is not supported yet")
    talk = not arguments.prompt and not arguments.json and sys.stdin.isatty() and sys.stdout.isatty()
    prompt = "" if talk else _prompt(arguments.prompt)
    model = _import(arguments, settings)
    with any_server(settings, verbose=arguments.verbose) as client:
        _ensure(client, arguments.model, model, arguments.json)
        chat = Chat(client, model, arguments.system, _options(arguments), arguments.keepalive)
        if talk:
            from corral.cli.repl import Repl

            return Repl(chat, settings.history, verbose=arguments.verbose).run()
        return _once(chat, prompt, arguments)


def _prompt(words: list[str]) -> str:
    """What is piped in, then what the command line says."""
    try:
        piped = "" if sys.stdin.isatty() else sys.stdin.buffer.read().decode().strip()
        prompt = "\n\n".join(part for part in (piped, " ".join(words)) if part)
        prompt.encode()  # what the shell passed may be anything too
    except UnicodeError:
        raise UsageError("the prompt is not UTF-8 text; convert it, for example with iconv") from None
    if not prompt:
        raise UsageError('nothing to ask: give a prompt, as in corral run MODEL "Why is the sky blue?"')
    return prompt


def _import(arguments: argparse.Namespace, settings: Settings) -> str:
    """The model's name, once the store knows the file or folder."""
    name = name_for(arguments.model).display
    if is_local_file(arguments.model):
        steps = open_models(settings, direct=True).pull(arguments.model, name, in_place=True)
        follow(steps, quiet=arguments.json)
    return name if is_source(arguments.model) else str(arguments.model)


def _ensure(client: Client, source: str, model: str, quiet: bool) -> None:
    """Pull the model through the server unless it has it."""
    try:
        client.call("POST", "/api/show", {"model": model})
        return
    except ApiError as error:
        if error.status != 404:
            raise
        if is_local_file(source):
            raise ApiError(404, f"{error}: the server at {client.address} uses another store") from None
    follow(client.stream("/api/pull", {"model": source, "stream": True}), quiet=quiet)


def _options(arguments: argparse.Namespace) -> dict[str, Any]:
    options = {option: getattr(arguments, option) for option, _ in _OPTIONS.values()}
    return {name: value for name, value in {**options, "stop": arguments.stop}.items() if value is not None}


def _once(chat: Chat, prompt: str, arguments: argparse.Namespace) -> int:
    if arguments.json:
        final = chat.say(prompt, lambda piece: None)
        print(json.dumps(final | {"message": {"role": "assistant", "content": chat.last_reply}}))
        return OK
    try:
        final = chat.say(prompt, write)
    finally:
        write("\n")
    if arguments.verbose:
        print_statistics(final)
    return OK
