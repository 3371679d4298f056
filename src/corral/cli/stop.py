"""`corral stop`."""

import argparse
import json

from corral.cli.client import Client
from corral.cli.exits import OK
from corral.config import Settings


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the model to unload."""
    parser.add_argument("model")


def run(arguments: argparse.Namespace, settings: Settings) -> int:
    """Have the server unload the model as soon as it is idle."""
    body = {"model": arguments.model, "prompt": "", "keep_alive": 0, "stream": False}
    Client.of(settings).call("POST", "/api/generate", body)
    print(json.dumps({"stopped": arguments.model}) if arguments.json else f"stopped '{arguments.model}'")
    return OK
