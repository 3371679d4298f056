"""`corral rm`."""

import argparse
import json
import sys

from corral.cli.exits import OK, exit_code
from corral.cli.models import open_models
from corral.config import Settings
from corral.errors import CorralError


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the models to remove."""
    parser.add_argument("models", nargs="+", metavar="MODEL")


def run(arguments: argparse.Namespace, settings: Settings) -> int:
    """Remove every model that can be removed; the exit code is that of the first one that cannot."""
    models, code, deleted = open_models(settings), OK, []
    for name in arguments.models:
        try:
            models.delete(name)
        except CorralError as error:
            print(f"error: {error}", file=sys.stderr)
            code = code or exit_code(error)
            continue
        deleted.append(name)
        if not arguments.json:
            print(f"deleted '{name}'")
    if arguments.json:
        print(json.dumps({"deleted": deleted}))
    return code
