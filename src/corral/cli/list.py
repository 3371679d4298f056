"""`corral list`."""

import argparse
import json

from corral.cli.client import Json
from corral.cli.exits import OK
from corral.cli.models import open_models
from corral.cli.render import human_size, since, table
from corral.config import Settings


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the beginning of the names to list."""
    parser.add_argument("prefix", nargs="?", default="", help="only models whose names begin so")


def run(arguments: argparse.Namespace, settings: Settings) -> int:
    """Print a table of the models in the store, newest first."""
    prefix = arguments.prefix.lower()
    models = [model for model in open_models(settings).list() if model["name"].lower().startswith(prefix)]
    if arguments.json:
        print(json.dumps({"models": models}, indent=2))
        return OK
    print(models_table(models))
    return OK


def models_table(models: list[Json]) -> str:
    """The table of models that /api/tags gave."""
    rows = [
        (model["name"], model["digest"][:12], human_size(model["size"]), since(model["modified_at"]))
        for model in models
    ]
    return table(("NAME", "ID", "SIZE", "MODIFIED"), rows)
