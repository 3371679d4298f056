"""Locks between processes that work on one store; the kernel drops them when their process dies."""

import fcntl
import os
from pathlib import Path
from types import TracebackType

from corral.store.durable import make_folder


class FileLock:
    """An exclusive lock named by a file. `with lock:` waits for it; `try_acquire` does not."""

    def __init__(self, path: Path):
        self.path = path
        self._fd = -1

    def try_acquire(self) -> bool:
        """Take the lock if nobody has it."""
        return self._acquire(fcntl.LOCK_EX | fcntl.LOCK_NB)

    def release(self) -> None:
        """Give it back; harmless when it is not held."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def remove(self) -> None:
        """Give a held lock back and remove its file; whoever waits for it makes a new one."""
        if self._fd >= 0:
            self.path.unlink(missing_ok=True)
            self.release()

    def _acquire(self, how: int) -> bool:
        make_folder(self.path.parent)
        while True:
            fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                fcntl.flock(fd, how)
                # A file that was removed between open and flock locks nobody else out.
                if os.fstat(fd).st_nlink:
                    self._fd, fd = fd, -1
                    return True
            except BlockingIOError:
                return False
            finally:
                if fd >= 0:
                    os.close(fd)

    def __enter__(self) -> "FileLock":
        self._acquire(fcntl.LOCK_EX)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()
