"""`corral version`."""

import argparse
import json

from corral import __version__
from corral.cli.exits import OK
from corral.config import Settings


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare nothing but what every command takes."""


def run(arguments: argparse.Namespace, settings: Settings) -> int:
    """Print the version of corral."""
    print(json.dumps({"version": __version__}) if arguments.json else f"corral {__version__}")
    return OK
