"""A model that stays where its owner keeps it: the store holds no more than the path of its file or folder.

The path is a blob of a layer of its own kind. Only the store's owner adds one: whoever takes manifests from
elsewhere must refuse such a layer, which could name any file of this machine.
"""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from corral.errors import CorruptModel


@dataclass(frozen=True, slots=True)
class Reference:
    """A place, and what was there when it was named: after a change the model has another digest."""

    path: str  # absolute
    size: int  # bytes of the files with weights
    modified_ns: int  # when the file, or the youngest file of the folder, was changed

    @classmethod
    def to(cls, path: Path, size: int) -> "Reference":
        """What is at a path now."""
        files = [file for file in path.iterdir() if file.is_file()] if path.is_dir() else [path]
        return cls(os.path.abspath(path), size, max(file.stat().st_mtime_ns for file in files))

    @classmethod
    def parse(cls, text: str) -> "Reference":
        """Read what `encode` has written."""
        try:
            reference = cls(**json.loads(text))
            os.path.isabs(reference.path)
        except (ValueError, TypeError):
            raise CorruptModel("the reference to its files is not one") from None
        return reference

    def encode(self) -> bytes:
        """The bytes of the blob."""
        return json.dumps(asdict(self)).encode()
