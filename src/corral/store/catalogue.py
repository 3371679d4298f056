"""The models that corral knows by name."""

import functools
import tomllib
from dataclasses import dataclass
from pathlib import Path

from corral.store.names import ModelName


@dataclass(frozen=True, slots=True)
class CatalogueEntry:
    """A known model: where its one GGUF file can be had, and what that file must be."""

    name: ModelName
    title: str
    sources: tuple[str, ...]  # tried in order
    file: str  # the file's name inside the source
    size: int
    sha256: str
    license: str


@functools.cache
def load_catalogue() -> tuple[CatalogueEntry, ...]:
    """Every entry, in the order of catalogue.toml."""
    table = tomllib.loads(Path(__file__).with_name("catalogue.toml").read_text("utf-8"))
    return tuple(
        CatalogueEntry(name=ModelName.parse(name), **{**row, "sources": tuple(row["sources"])})
        for name, row in table.items()
    )


def find_entry(name: ModelName) -> CatalogueEntry | None:
    """The entry of that name, whatever its case."""
    wanted = name.path.lower()
    return next((entry for entry in load_catalogue() if entry.name.path.lower() == wanted), None)
