"""GGUF models in several files, as llama-gguf-split writes them: NAME-00001-of-00003.gguf.

The first part has the metadata of the model, every part some of its tensors. `split.no` (from 0) and
`split.count` stand in each part, `split.tensors.count`, of all parts together, in the first.
"""

import re
from pathlib import Path

from corral.errors import CorruptModel
from corral.weights.gguf import GGUFFile, open_gguf

__all__ = ["open_parts", "part_paths"]

MAX_PARTS = 1000
_NAME = re.compile(r"(.+)-(\d{5})-of-(\d{5})(\.gguf)", re.IGNORECASE)


def part_paths(path: Path) -> list[Path]:
    """All parts of the model that a file is a part of by its name, in order; else the path alone."""
    match = _NAME.fullmatch(path.name)
    if not match or not 1 < int(match[3]) <= MAX_PARTS:
        return [path]
    stem, _, count, suffix = match.groups()
    return [path.with_name(f"{stem}-{number:05}-of-{count}{suffix}") for number in range(1, int(count) + 1)]


def open_parts(path: Path) -> tuple[GGUFFile, ...]:
    """The file, or all parts if it is one of several; the errors name the parts that are missing or wrong."""
    file = open_gguf(path)
    if file.metadata.get("split.count", 1) == 1:
        return (file,)
    count, paths = file.metadata["split.count"], part_paths(path)
    if len(paths) != count:
        raise CorruptModel(
            f"{path.name} says that it is one of {count!r:.20} parts, which its name does not: put it beside "
            "the others under its published name, or merge them (llama-gguf-split --merge)"
        )
    if missing := [each.name for each in paths if not each.is_file()]:
        raise CorruptModel(
            f"{len(missing)} of the model's {count} parts are missing beside {path.name}: {_few(missing)}"
        )
    files = tuple(file if each == path else open_gguf(each) for each in paths)
    _check(files)
    return files


def _check(files: tuple[GGUFFile, ...]) -> None:
    seen: set[str] = set()
    for number, file in enumerate(files):
        place = file.metadata.get("split.no"), file.metadata.get("split.count")
        if place != (number, len(files)):
            raise CorruptModel(
                f"{file.path.name} says that it is part {place[0]!r:.20} (from 0) of {place[1]!r:.20}; "
                "its name says something else"
            )
        if twice := seen.intersection(file.tensors):
            raise CorruptModel(
                f"{file.path.name} has tensors that another part has too: {_few(sorted(twice))}"
            )
        seen.update(file.tensors)
    total = files[0].metadata.get("split.tensors.count")
    if total != len(seen):
        raise CorruptModel(
            f"{files[0].path.name} promises {total!r:.20} tensors, the {len(files)} parts have {len(seen)}"
        )


def _few(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
