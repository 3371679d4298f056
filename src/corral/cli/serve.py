"""`corral serve`."""

import argparse
import contextlib
import dataclasses
import gc
import json
import os
import signal
import threading
from typing import TYPE_CHECKING

from corral import __version__
from corral.cli.exits import UsageError
from corral.config import DEFAULT_MODEL, DEFAULT_PORT, Settings, http_address, parse_host
from corral.engine.process import Spare
from corral.errors import CorralError

if TYPE_CHECKING:
    from corral.store.local import Store

_GREETING = "Why is the sky blue? Answer in one sentence."
_OPENAI = (  # the package has no command of its own
    "from openai import OpenAI; "
    'print(OpenAI().chat.completions.create(model="{model}", '
    'messages=[{{"role": "user", "content": "Hello!"}}]).choices[0].message.content)'
)


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare where to listen, and a model to load at once."""
    parser.add_argument("--host", metavar="HOST[:PORT]", help="listen here instead of at OLLAMA_HOST")
    parser.add_argument("--model", help="load this model at once; fetch it if it is missing")
    # For commands that start a server of their own: it stops when its standard input closes.
    parser.add_argument("--with-parent", action="store_true", help=argparse.SUPPRESS)


def run(arguments: argparse.Namespace, settings: Settings) -> int:
    """Serve until SIGTERM or SIGINT."""
    if arguments.host:
        try:
            host, port = parse_host(arguments.host)
        except ValueError as error:
            raise UsageError(f"--host: {error}") from None
        settings = dataclasses.replace(settings, host=host, port=port)
    gc.disable()  # until the server has started: what is imported stays
    spare = Spare()  # before our own imports, which take as long as an engine's
    try:
        return _run_server(arguments, settings, spare)
    finally:
        spare.close()


def _run_server(arguments: argparse.Namespace, settings: Settings, spare: Spare) -> int:
    from corral.store.local import Store

    store = Store(settings.models)
    with contextlib.suppress(CorralError, OSError):
        store.prune()
    if arguments.model:
        fetch(store, settings, arguments.model)
    if arguments.with_parent:
        threading.Thread(target=_stop_with_parent, daemon=True).start()
    from corral.server.serve import serve

    def announce(host: str, port: int) -> None:
        if arguments.json:
            print(json.dumps({"host": host, "port": port, "pid": os.getpid()}), flush=True)
        else:
            print(_welcome(store, host, port, arguments.model), flush=True)

    return serve(settings, on_listening=announce, spare=spare, preload=arguments.model or "")


def fetch(store: "Store", settings: Settings, name: str) -> None:
    """Pull the model `name` unless it is in the store."""
    try:
        store.find(name)
    except CorralError:
        from corral.cli.offline import StoreModels
        from corral.cli.progress import follow

        follow(StoreModels(settings).pull(name))


def _welcome(store: "Store", host: str, port: int, wanted: str | None) -> str:
    """The server's address, and three commands that try it as they stand."""
    address = http_address(host, port)
    lines = [f"corral {__version__} is listening on {address}", ""]
    stored = [model.name.display for model in store.list()]
    model = wanted or (DEFAULT_MODEL if DEFAULT_MODEL in stored else next(iter(stored), DEFAULT_MODEL))
    if not stored:
        lines += ["There is no model yet. Fetch one:", f"  corral pull {model}", ""]
    body = json.dumps({"model": model, "messages": [{"role": "user", "content": _GREETING}], "stream": False})
    where = "" if (host, port) == ("127.0.0.1", DEFAULT_PORT) else f"OLLAMA_HOST={address} "
    return "\n".join(
        [
            *lines,
            "Try it from another terminal:",
            f"  curl {address}/api/chat -d '{body}'",
            f'  {where}ollama run {model} "{_GREETING}"',
            f"  OPENAI_BASE_URL={address}/v1 OPENAI_API_KEY=none python3 -c '{_OPENAI.format(model=model)}'",
        ]
    )


def _stop_with_parent() -> None:
    """Stop this server when its standard input closes, as when its parent has ended, even by kill -9."""
    while os.read(0, 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
