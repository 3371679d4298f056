"""The store's models without a server, in the shapes that a server would answer."""

import builtins
import dataclasses
from collections.abc import Generator

from corral.cli.client import Json
from corral.config import Settings
from corral.server.details import config_fields, model_card, model_row
from corral.store.local import Store
from corral.store.pull import pull


class StoreModels:
    """Models in the store of this machine."""

    def __init__(self, settings: Settings):
        self.store = Store(settings.models)

    def list(self) -> builtins.list[Json]:
        """Every whole model, newest first."""
        return [model_row(stored) for stored in self.store.list()]

    def show(self, name: str, verbose: bool) -> Json:
        """A model's facts."""
        return model_card(self.store.find(name), verbose)

    def delete(self, name: str) -> None:
        """Remove a model."""
        self.store.delete(name)

    def pull(self, source: str, name: str | None = None) -> Generator[Json, None, None]:
        """Fetch a model; local files are allowed, as the caller is the owner of the store."""
        steps = pull(self.store, source, name=name, inspect=config_fields, local_files=True)
        try:
            for step in steps:
                yield {
                    key: value for key, value in dataclasses.asdict(step).items() if value or key == "status"
                }
        finally:
            steps.close()
