"""A file mapped into memory: its bytes are handed out as views and never copied."""

import contextlib
import mmap
import os
from pathlib import Path
from types import TracebackType
from typing import Self

from corral.errors import CorruptModel, ModelNotFound, UserError

__all__ = ["MappedFile"]


class MappedFile:
    """A mapped file. After `close`, memory that tensors still view is unmapped with the last of them."""

    def __init__(self, path: Path, format: str, least: int):
        """Map the file; CorruptModel if it is shorter than `least` bytes and so cannot be of the format."""
        try:
            with path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                if size < least:
                    raise CorruptModel(f"{path.name} is not a {format} file: it has {size} bytes")
                self.data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except FileNotFoundError:
            raise ModelNotFound(str(path)) from None
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror}") from error
        self.path, self.size = path, size
        self.view = memoryview(self.data)

    def release_bytes(self, start: int, nbytes: int) -> None:
        """Give back the memory of the pages of these bytes; reading them again fetches them from the file."""
        first = start - start % mmap.PAGESIZE
        if nbytes:
            self.data.madvise(mmap.MADV_DONTNEED, first, start + nbytes - first)

    def close(self) -> None:
        """End the use of the file."""
        self.view.release()
        with contextlib.suppress(BufferError):  # tensors are still in use: the mapping goes when they do
            self.data.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
