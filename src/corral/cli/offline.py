"""The store's models without a server, in the shapes of a server's answers."""

import builtins
import dataclasses
from collections.abc import Generator

from corral.cli.client import Json
from corral.config import Settings
from corral.server.details import model_card, model_facts, model_row
from corral.store.local import Store
from corral.store.pull import pull


class StoreModels:
    """Models in the store of this machine."""

    def __init__(self, settings: Settings):
        self.store = Store(settings.models)

    def list(self) -> builtins.list[Json]:
        """Every model whose files are all there, newest first."""
        return [model_row(stored) for stored in self.store.list()]

    def show(self, name: str, verbose: bool) -> Json:
        """What /api/show says of a model."""
        return model_card(self.store.find(name), verbose)

    def delete(self, name: str) -> None:
        """Remove a model."""
        self.store.delete(name)

    def pull(
        self, source: str, name: str | None = None, *, in_place: bool = False
    ) -> Generator[Json, None, None]:
        """Fetch a model and yield the steps. Local files are allowed: the user owns the store."""
        steps = pull(self.store, source, name=name, inspect=model_facts, local_files=True, in_place=in_place)
        try:
            for step in steps:
                yield {
                    key: value for key, value in dataclasses.asdict(step).items() if value or key == "status"
                }
        finally:
            steps.close()
