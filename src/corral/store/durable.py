"""Files that appear whole or not at all: written beside their place, synced, then renamed."""

import contextlib
import errno
import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from corral.errors import CorralError, PullFailed

TEMPORARY = ".corral-"  # the prefix of every unfinished file; Ollama ignores such names
CHUNK = 4 << 20
_FICLONE = 0x40049409  # Linux: share the other file's blocks until one of the two is written


class DurableFile:
    """A new file, hashed while it is written; unseen before `publish`. Leaving the block discards it."""

    def __init__(self, folder: Path):
        make_folder(folder)
        self.path = folder / f"{TEMPORARY}{os.urandom(8).hex()}"
        self.size = 0
        self._hash = hashlib.sha256()
        self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)

    def write(self, data: bytes | memoryview) -> None:
        """Append `data`."""
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(self._fd, rest) :]
        self._hash.update(data)
        self.size += len(data)

    def adopt(self, source: BinaryIO) -> Iterator[int]:
        """Take over the whole of `source`, sharing its blocks if the file system can; yields bytes done."""
        if not self._share(source):
            while chunk := source.read(CHUNK):
                self.write(chunk)
                yield self.size
            return
        with self.path.open("rb") as snapshot:  # the source may still change; what was shared does not
            while chunk := snapshot.read(CHUNK):
                self._hash.update(chunk)
                self.size += len(chunk)
                yield self.size

    def _share(self, source: BinaryIO) -> bool:
        try:
            fcntl.ioctl(self._fd, _FICLONE, source.fileno())
        except OSError:
            return False
        return True

    @property
    def digest(self) -> str:
        """The sha256 of what has been written, in hex."""
        return self._hash.hexdigest()

    def seal(self) -> str:
        """Put every byte on the disk and return the digest; nothing is written afterwards."""
        os.fsync(self._fd)
        return self.digest

    def publish(self, target: Path) -> None:
        """Give the sealed file its name, replacing what is there."""
        make_folder(target.parent)
        os.replace(self.path, target)
        sync_folder(target.parent)

    def __enter__(self) -> "DurableFile":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._fd)
        self.path.unlink(missing_ok=True)


def write_file(target: Path, data: bytes) -> None:
    """Replace `target` by `data`, durably."""
    with DurableFile(target.parent) as file:
        file.write(data)
        file.seal()
        file.publish(target)


def make_folder(folder: Path) -> None:
    """Make `folder` and its missing parents, each entered durably in the one above."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    for path in reversed(missing):
        path.mkdir(exist_ok=True)
        sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Put the folder's own entries on the disk."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextlib.contextmanager
def disk_errors(root: Path) -> Iterator[None]:
    """Turn what the disk under `root` answers into an error that names the remedy."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise PullFailed(
                f"the disk is full: {free_space(root) >> 20} MB free at {root}. Make room "
                "(`corral rm MODEL`) or point CORRAL_MODELS at a larger disk; nothing half-written is left."
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise CorralError(
                f"the store at {root} cannot be written ({error.strerror}: {error.filename}). "
                "Mend its permissions or point CORRAL_MODELS at a folder of your own."
            ) from error
        raise CorralError(f"the store at {root} failed: {error}") from error


def free_space(root: Path) -> int:
    """Bytes free on the disk that holds (or would hold) `root`."""
    while not root.exists() and root != root.parent:
        root = root.parent
    return shutil.disk_usage(root).free
