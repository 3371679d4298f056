"""The models of a server where one answers, else those of the store on this machine."""

from collections.abc import Generator
from typing import Protocol

from corral.cli.client import LOCAL, Client, Json
from corral.cli.exits import NoServer, UsageError
from corral.config import Settings


class Models(Protocol):
    """What the commands list, show, rm and pull need. Answers have the shapes of Ollama's API."""

    def list(self) -> list[Json]:
        """Every model, newest first."""
        ...

    def show(self, name: str, verbose: bool) -> Json:
        """What /api/show says of a model."""
        ...

    def delete(self, name: str) -> None:
        """Remove a model."""
        ...

    def pull(
        self, source: str, name: str | None = None, *, in_place: bool = False
    ) -> Generator[Json, None, None]:
        """Fetch a model and yield the steps of the pull, as /api/pull does.

        With `in_place` a file of this machine is named and not copied.
        """
        ...


def open_models(settings: Settings, *, direct: bool = False) -> Models:
    """The server's models; the store's when no server answers on this machine, or with `direct`."""
    client = Client.of(settings)
    if not direct and client.alive():
        return ServerModels(client)
    if settings.host not in LOCAL:
        raise (
            UsageError("this works on the server's own machine only") if direct else NoServer(client.address)
        )
    from corral.cli.offline import StoreModels

    return StoreModels(settings)


class ServerModels:
    """The models of a server, through its API."""

    def __init__(self, client: Client):
        self.client = client

    def list(self) -> list[Json]:
        """GET /api/tags."""
        return list_of(self.client.call("GET", "/api/tags"))

    def show(self, name: str, verbose: bool) -> Json:
        """POST /api/show."""
        return self.client.call("POST", "/api/show", {"model": name, "verbose": verbose})

    def delete(self, name: str) -> None:
        """DELETE /api/delete."""
        self.client.call("DELETE", "/api/delete", {"model": name})

    def pull(
        self, source: str, name: str | None = None, *, in_place: bool = False
    ) -> Generator[Json, None, None]:
        """POST /api/pull, which knows no files of the client's."""
        return self.client.stream("/api/pull", {"model": source, "stream": True})


def list_of(answer: Json) -> "list[Json]":
    """The models that an answer of /api/tags or /api/ps lists."""
    return [model for model in answer.get("models") or [] if isinstance(model, dict)]
