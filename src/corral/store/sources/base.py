"""What every source does: write one GGUF into a file, and report on the way."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from corral.store.durable import DurableFile
from corral.store.progress import Progress


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is known beforehand about the file; empty or 0 where nothing is."""

    file: str = ""
    size: int = 0
    sha256: str = ""

    @property
    def label(self) -> str:
        """`pulling <12 hex>`, as Ollama names a download."""
        return f"pulling {self.sha256[:12]}" if self.sha256 else "pulling model"

    @property
    def digest(self) -> str:
        """`sha256:<hex>`, or nothing."""
        return f"sha256:{self.sha256}" if self.sha256 else ""

    def progress(self, completed: int, total: int = 0) -> Progress:
        """Progress of the download."""
        total = self.size or total
        return Progress(self.label, self.digest, total, min(completed, total) if total else completed)


class Source(Protocol):
    """One place that has the file."""

    def fetch(self, wanted: Wanted, out: DurableFile, partial: Path) -> Iterator[Progress]:
        """Write the file into `out`. `partial` is a folder of this pull's own that outlives a killed pull.

        PullFailed when the file cannot be had here; closing the iterator stops everything it started.
        """
        ...

    @property
    def title(self) -> str:
        """What the user calls it."""
        ...

    @property
    def license(self) -> str:
        """The licence text found beside the file, after `fetch`."""
        ...
