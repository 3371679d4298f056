"""A GGUF file on this machine: its bytes are shared with the store where the file system can, else copied."""

from collections.abc import Iterator
from pathlib import Path

from corral.errors import PullFailed
from corral.store.durable import DurableFile
from corral.store.progress import Progress
from corral.store.sources.base import Wanted


class FileSource:
    """A path, absolute or relative to the working folder."""

    license = ""

    def __init__(self, text: str):
        self.path = Path(text).expanduser()
        self.title = str(self.path)

    def fetch(self, wanted: Wanted, out: DurableFile, partial: Path) -> Iterator[Progress]:
        """Take the file over, hashing it."""
        if not self.path.is_file():
            raise PullFailed(f"there is no file '{self.path}'")
        try:
            source = self.path.open("rb")
        except PermissionError:
            raise PullFailed(f"'{self.path}' may not be read by this user") from None
        with source:
            total = self.path.stat().st_size
            for completed in out.adopt(source):
                yield wanted.progress(completed, total)
