"""`corral ps`."""

import argparse
import json

from corral.cli.client import Client, Json
from corral.cli.exits import OK
from corral.cli.models import list_of
from corral.cli.render import human_size, table, until
from corral.config import Settings


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the beginning of the names to list."""
    parser.add_argument("prefix", nargs="?", default="", help="only models whose names begin so")


def run(arguments: argparse.Namespace, settings: Settings) -> int:
    """Print a table of the models in memory."""
    prefix = arguments.prefix.lower()
    models = list_of(Client.of(settings).call("GET", "/api/ps"))
    models = [model for model in models if model["name"].lower().startswith(prefix)]
    if arguments.json:
        print(json.dumps({"models": models}, indent=2))
        return OK
    rows = [
        (
            model["name"],
            model["digest"][:12],
            human_size(model["size"]),
            _processor(model),
            str(model.get("context_length") or ""),
            until(model["expires_at"]),
        )
        for model in models
    ]
    print(table(("NAME", "ID", "SIZE", "PROCESSOR", "CONTEXT", "UNTIL"), rows))
    return OK


def _processor(model: Json) -> str:
    """Which share of a model's bytes is on CPU and on GPU, as Ollama prints it."""
    share = round(100 * model.get("size_vram", 0) / max(1, model["size"]))
    if share in (0, 100):
        return "100% GPU" if share else "100% CPU"
    return f"{100 - share}%/{share}% CPU/GPU"
