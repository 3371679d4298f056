"""Reads members of a wheel as data: nothing is extracted by its own path, imported or run."""

import base64
import csv
import email
import email.message
import hashlib
import io
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

from corral.errors import PullFailed
from corral.store.durable import CHUNK

MAX_MEMBERS = 100_000
MAX_TEXT = 8 << 20  # the largest member that is read whole
MAX_RATIO = 200  # a member that unpacks to more than this many times its size is a bomb
# What zipfile raises over a file that is not right.
_BAD_ZIP = (zipfile.BadZipFile, zlib.error, struct.error, OSError, EOFError, ValueError, RuntimeError)
_HASHES = ("sha256", "sha384", "sha512")


class Wheel:
    """One downloaded wheel. Every member read is checked against the RECORD inside."""

    def __init__(self, path: Path):
        self.path = path
        try:
            self._zip = zipfile.ZipFile(path)
        except _BAD_ZIP as error:
            raise PullFailed(f"{path.name} is not a whole wheel: {error}") from None
        self._members = {info.filename: info for info in self._zip.infolist() if not info.is_dir()}
        self._check_members()

    def close(self) -> None:
        """Close the file."""
        self._zip.close()

    @property
    def names(self) -> list[str]:
        """Every member's name."""
        return list(self._members)

    def size(self, name: str) -> int:
        """A member's size when unpacked."""
        return self._members[name].file_size

    def chunks(self, name: str) -> Iterator[bytes]:
        """A member's bytes; PullFailed at the end if RECORD says otherwise."""
        kind, expected = self._record_hash(name)
        digest = hashlib.new(kind)
        for chunk in self._unpack(name):
            digest.update(chunk)
            yield chunk
        if _unpadded(digest.digest()) != expected:
            raise PullFailed(f"{self.path.name}: {name} does not match the hash in RECORD")

    def _unpack(self, name: str) -> Iterator[bytes]:
        left = self.size(name)
        try:
            with self._zip.open(self._members[name]) as member:
                while chunk := member.read(CHUNK):
                    left -= len(chunk)
                    yield chunk
        except _BAD_ZIP as error:
            raise PullFailed(f"{self.path.name}: {name} cannot be unpacked: {error}") from None
        if left:
            raise PullFailed(f"{self.path.name}: {name} is not as long as the archive says")

    def text(self, name: str) -> str:
        """A small member as text, checked."""
        self._check_small(name)
        return b"".join(self.chunks(name)).decode("utf-8", "replace")

    @cached_property
    def metadata(self) -> email.message.Message:
        """The package's METADATA: Name, Version, Requires-Dist, License."""
        return email.message_from_string(self.text(self._info_file("METADATA")))

    @cached_property
    def license(self) -> str:
        """The licence: the text that the wheel carries, else what METADATA calls it."""
        for name in self.names:
            if re.fullmatch(r"[^/]+\.dist-info/(licenses/)?LICEN[CS]E[^/]*", name, re.IGNORECASE):
                return self.text(name)
        return str(self.metadata["License-Expression"] or self.metadata["License"] or "")

    @cached_property
    def _record(self) -> dict[str, str]:
        name = self._info_file("RECORD")
        self._check_small(name)
        text = b"".join(self._unpack(name)).decode("utf-8", "replace")
        try:
            return {row[0]: row[1] for row in csv.reader(io.StringIO(text)) if len(row) >= 2}
        except csv.Error as error:
            raise PullFailed(f"{self.path.name}: RECORD cannot be read: {error}") from None

    def _record_hash(self, name: str) -> tuple[str, str]:
        kind, _, value = self._record.get(name, "").partition("=")
        if kind not in _HASHES or not value:
            raise PullFailed(f"{self.path.name}: RECORD has no usable hash of {name}")
        return kind, value.rstrip("=")

    def _info_file(self, name: str) -> str:
        found = [member for member in self._members if re.fullmatch(rf"[^/]+\.dist-info/{name}", member)]
        if len(found) != 1:
            raise PullFailed(f"{self.path.name} is not a wheel: it has {len(found)} {name} files")
        return found[0]

    def _check_small(self, name: str) -> None:
        if self.size(name) > MAX_TEXT:
            raise PullFailed(f"{self.path.name}: {name} is too large ({self.size(name)} bytes)")

    def _check_members(self) -> None:
        """Refuse what no honest wheel has: escaping or double names, overlapping or exploding members."""
        infos = self._zip.infolist()
        if len(infos) > MAX_MEMBERS:
            raise PullFailed(f"{self.path.name} has {len(infos)} members; the limit is {MAX_MEMBERS}")
        if len({info.filename for info in infos}) != len(infos):
            raise PullFailed(f"{self.path.name} has two members of one name")
        for info in infos:
            if _escapes(info.filename):
                raise PullFailed(f"{self.path.name} has an unsafe member name: {info.filename[:100]!r}")
            if info.file_size > max(CHUNK, MAX_RATIO * info.compress_size):
                raise PullFailed(f"{self.path.name}: {info.filename} would unpack to {info.file_size} bytes")
        if sum(info.compress_size for info in infos) > self.path.stat().st_size:
            raise PullFailed(f"{self.path.name} has overlapping members")


def _escapes(name: str) -> bool:
    parts = name.split("/")
    return name.startswith("/") or "\\" in name or "\0" in name or ".." in parts or ":" in parts[0]


def _unpadded(digest: bytes) -> str:
    return base64.urlsafe_b64encode(digest).decode().rstrip("=")
