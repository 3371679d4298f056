"""`corral pull`."""

import argparse

from corral.cli.exits import OK
from corral.cli.models import open_models
from corral.cli.progress import follow
from corral.config import Settings
from corral.store import words
from corral.store.names import ModelName
from corral.store.pull import is_local_file, name_for


def configure(parser: argparse.ArgumentParser) -> None:
    """What to fetch, and what to call it."""
    parser.add_argument("model", help=words.SOURCES)
    parser.add_argument("--name", help="the name to give it (for a file, a folder or a package)")


def run(arguments: argparse.Namespace, settings: Settings) -> int:
    """Fetch it, showing progress."""
    # A file and a name of one's own are no business of a server's: the owner of the store adds them.
    direct = is_local_file(arguments.model) or arguments.name is not None
    name = ModelName.parse(arguments.name) if arguments.name else name_for(arguments.model)
    steps = open_models(settings, direct=direct).pull(arguments.model, name.display)
    follow(steps, as_json=arguments.json)
    return OK
