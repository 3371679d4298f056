"""The files of a model's folder: read whole within limits, and only where they lie inside it."""

import json
import os
from pathlib import Path
from typing import Any

from corral.errors import CorruptModel, UnsupportedModel, UserError

__all__ = ["FolderFiles"]

MAX_JSON = 1 << 20  # bytes of a configuration


class FolderFiles:
    """A folder's files by name. A link may lead to another place in the folder and nowhere else.

    The Hugging Face cache is the exception: models--ORG--NAME/snapshots/REVISION holds links to ../../blobs.
    """

    def __init__(self, root: Path, home: Path | None = None):
        """The folder `root`, in a larger one, `home`, in which links may lead anywhere."""
        self.root = root
        self._home = home or _home(root.resolve())

    @property
    def name(self) -> str:
        """The folder's name, for messages."""
        return self.root.resolve().name

    def find(self, name: str) -> Path | None:
        """The file's path; None if there is none. CorruptModel for one that is not in the folder."""
        if name in ("", ".", "..") or any(character in name for character in "/\\\0"):
            raise CorruptModel(f"{self.name}: '{name:.200}' is not the name of a file in the folder")
        path = self.root / name
        try:
            target = path.resolve(strict=True)
        except FileNotFoundError:
            return None
        except (OSError, RuntimeError) as error:  # a link to itself is a RuntimeError before Python 3.13
            raise CorruptModel(f"{self.name}: '{name}' cannot be followed: {error}") from None
        if not target.is_relative_to(self._home):
            raise CorruptModel(
                f"{self.name}: '{name}' is a link out of the folder, to {target}; put the file itself there"
            )
        if not target.is_file():
            raise CorruptModel(f"{self.name}: '{name}' is not a file")
        return path

    def read(self, name: str, limit: int) -> bytes | None:
        """A file's bytes, None if there is none; UnsupportedModel if they are more than `limit`."""
        path = self.find(name)
        if path is None:
            return None
        try:
            with path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                data = file.read(limit) if size <= limit else b""
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror}") from error
        if size > limit:
            raise UnsupportedModel(
                f"{self.name}: '{name}' has {size} bytes, and more than {limit} are not read; is it the file "
                "that the model was published with?"
            )
        return data

    def read_text(self, name: str, limit: int) -> str | None:
        """A file's text; CorruptModel if it is not UTF-8."""
        data = self.read(name, limit)
        try:
            return None if data is None else data.decode()
        except UnicodeDecodeError as error:
            raise CorruptModel(f"{self.name}: '{name}' is not UTF-8: {error}") from None

    def read_json(self, name: str) -> dict[str, Any]:
        """A configuration's values, none if there is no such file; CorruptModel if it is no JSON object."""
        data = self.read(name, MAX_JSON)
        try:
            value = json.loads(data or b"{}")  # not msgspec: Python's JSON has Infinity, and theirs uses it
        except (ValueError, RecursionError) as error:
            raise CorruptModel(f"{self.name}: '{name}' is not JSON: {error}") from None
        if not isinstance(value, dict):
            raise CorruptModel(f"{self.name}: '{name}' must hold a JSON object")
        return value

    def folder(self, name: str) -> "FolderFiles | None":
        """A folder inside this one, if it is there and no link."""
        path = self.root / name
        return FolderFiles(path, self._home) if path.is_dir() and not path.is_symlink() else None

    def names(self, suffix: str) -> list[str]:
        """The names in the folder that end so, sorted."""
        return sorted(path.name for path in self.root.iterdir() if path.name.endswith(suffix))


def _home(root: Path) -> Path:
    cached = root.parent.name == "snapshots" and root.parent.parent.name.startswith("models--")
    return root.parent.parent if cached else root
