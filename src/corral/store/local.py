"""The models on this machine: manifests and content-addressed blobs, laid out as Ollama does."""

import builtins
import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from corral.errors import CorralError, CorruptModel, InvalidName, ModelNotFound, UnsupportedModel
from corral.store import manifest as media
from corral.store.durable import CHUNK, TEMPORARY, DurableFile, disk_errors, sync_folder, write_file
from corral.store.lock import FileLock
from corral.store.manifest import Layer, Manifest, digest_hex
from corral.store.names import ModelName
from corral.store.reference import Reference

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Facts:
    """What reading a model's files has told."""

    config: Mapping[str, Any]  # fields of the config blob, in Ollama's names
    params: Mapping[str, Any] = field(default_factory=dict)  # the authors' sampling defaults
    size: int = 0  # bytes of the files with weights


Inspect = Callable[[Path], Facts]  # opens a file or folder; raises if it cannot be used

STALE = 24 * 3600.0  # an unfinished file this old belongs to nobody
GRACE = 3600.0  # a blob this new may belong to a manifest that is about to be written
_SMALL = 4 << 20  # texts and JSON blobs; anything larger is not read


@dataclass(frozen=True, slots=True)
class StoredModel:
    """A model whose manifest is in the store, and whose weights are there or where their owner keeps them."""

    name: ModelName
    digest: str  # of the manifest, 64 hex digits
    size: int  # bytes of all its files
    modified_at: datetime  # with the local time zone
    path: Path  # the file or folder with its weights
    config: dict[str, Any] = field(default_factory=dict)
    params: dict[str, Any] = field(default_factory=dict)
    template: str = ""
    system: str = ""
    license: str = ""

    @property
    def format(self) -> str:
        """The format of its files; Ollama's stores, where nothing is said, have the first."""
        return str(self.config.get("model_format") or "gguf")


@dataclass(frozen=True, slots=True)
class Damage:
    """Something wrong with a stored model."""

    name: str
    problem: str


@dataclass(frozen=True, slots=True)
class Garbage:
    """A file that nothing refers to."""

    path: Path
    size: int


class Store:
    """A folder of models. Several processes may use one store; making the object touches nothing."""

    def __init__(self, root: Path):
        self.root = root
        self.blobs = root / "blobs"
        self.manifests = root / "manifests"
        self.partial = root / "partial"

    # Reading

    def list(self) -> builtins.list[StoredModel]:
        """Every whole model, newest first; damaged ones are left out (see `verify`)."""
        models = []
        for name in self.names():
            try:
                models.append(self._open(name))
            except CorralError as error:
                log.warning("skipping %s: %s", name, error)
        return sorted(models, key=lambda model: model.modified_at, reverse=True)

    def names(self) -> Iterator[ModelName]:
        """Every name that has a manifest, whole or not."""
        folders: Iterator[Path] = iter((self.manifests,))
        for _ in range(4):  # host, namespace, model, tag
            folders = (path for folder in builtins.list(folders) for path in _entries(folder))
        for path in folders:
            host, namespace, model, tag = path.relative_to(self.manifests).parts
            try:
                name = ModelName(model, tag, namespace, host)
            except InvalidName:
                continue
            if path.is_file():
                yield name

    def find(self, name: ModelName | str) -> StoredModel:
        """The model of that name, whatever its case; ModelNotFound says what comes near."""
        return self._open(self.locate(name))

    def locate(self, name: ModelName | str) -> ModelName:
        """The name as stored, for one written in any case; ModelNotFound if there is none."""
        name = ModelName.parse(name) if isinstance(name, str) else name
        if self._manifest_path(name).is_file():
            return name
        wanted = name.path.lower()
        for other in self.names():
            if other.path.lower() == wanted:
                return other
        raise self.not_found(name)

    def blob_path(self, digest: str) -> Path:
        """Where the blob `sha256:<hex>` lies; CorruptModel if that is not a digest."""
        return self.blobs / f"sha256-{digest_hex(digest)}"

    def read_manifest(self, name: ModelName) -> tuple[Manifest, bytes]:
        """The manifest stored under exactly that name, and its bytes."""
        data, _ = self._read(name)
        return Manifest.parse(data), data

    def _read(self, name: ModelName) -> tuple[bytes, float]:
        """A manifest's bytes and its time of change."""
        with self._manifest_path(name).open("rb") as file:
            return file.read(media.MAX_BYTES + 1), os.fstat(file.fileno()).st_mtime

    def not_found(self, name: ModelName) -> ModelNotFound:
        """The error for a name that is not here, with the nearest one that is or could be."""
        from corral.store.catalogue import find_entry, load_catalogue  # here: seldom needed

        if find_entry(name):
            return ModelNotFound(name.display, remedy=f"; fetch it with `corral pull {name}`")
        stored = builtins.list(self.names())
        known = [entry.name for entry in load_catalogue()]
        near = nearest_name(name, [*stored, *known])
        remedy = f" Fetch it with `corral pull {near}`" if near and near not in stored else ""
        return ModelNotFound(name.display, near.display if near else None, remedy)

    def _open(self, name: ModelName) -> StoredModel:
        remedy = f"remove it with `corral rm {name}` and pull it again"
        try:
            data, modified = self._read(name)
            manifest = Manifest.parse(data)
        except CorruptModel as error:
            raise CorruptModel(f"model '{name}' is damaged: {error}; {remedy}") from None
        except FileNotFoundError:
            raise self.not_found(name) from None
        weights = manifest.layer(media.MODEL) or manifest.layer(media.REFERENCE)
        if weights is None:
            raise UnsupportedModel(f"model '{name}' has no weights that corral can read")
        if problem := self._size_problem(weights) or self._place_problem(weights):
            raise CorruptModel(f"model '{name}' is damaged: {problem}; {remedy}")
        place = self._reference(weights)
        return StoredModel(
            name=name,
            digest=hashlib.sha256(data).hexdigest(),
            size=manifest.size + (place.size if place else 0),
            modified_at=datetime.fromtimestamp(modified).astimezone(),
            path=Path(place.path) if place else self.blob_path(weights.digest),
            config=self._json(manifest.config),
            params=self._json(manifest.layer(media.PARAMS)),
            template=self._text(manifest.layer(media.TEMPLATE)),
            system=self._text(manifest.layer(media.SYSTEM)),
            license=self._text(manifest.layer(media.LICENSE)),
        )

    def _reference(self, layer: Layer) -> Reference | None:
        """Where a model lies that the store only names."""
        return Reference.parse(self._text(layer)) if layer.media_type == media.REFERENCE else None

    def _text(self, layer: Layer | None) -> str:
        if layer is None or layer.size > _SMALL:
            return ""
        try:
            with self.blob_path(layer.digest).open("rb") as file:
                return file.read(_SMALL).decode("utf-8", "replace")
        except OSError:
            return ""

    def _json(self, layer: Layer | None) -> dict[str, Any]:
        try:
            value = json.loads(self._text(layer) or "{}")
        except (ValueError, RecursionError):
            return {}
        return value if isinstance(value, dict) else {}

    def _manifest_path(self, name: ModelName) -> Path:
        return self.manifests / name.path

    # Writing

    def new_blob(self) -> DurableFile:
        """A file to write a blob into; `publish_blob` puts it in its place."""
        return DurableFile(self.blobs)

    def publish_blob(self, file: DurableFile, media_type: str) -> Layer:
        """Seal the file and name it by its digest. Publishing the same bytes twice is harmless."""
        layer = Layer(media_type, f"sha256:{file.seal()}", file.size)
        file.publish(self.blob_path(layer.digest))
        return layer

    def add_model(
        self, name: ModelName, weights: Layer, config: Mapping[str, Any], texts: Mapping[str, str]
    ) -> StoredModel:
        """Name published weights: the other blobs first, the manifest last. `texts` is by media type."""
        with disk_errors(self.root), self._locked():
            layers = [weights, *(self._put(text.encode(), kind) for kind, text in texts.items() if text)]
            body = {
                "model_format": "gguf",
                **config,
                "architecture": "amd64",
                "os": "linux",
                "rootfs": {"type": "layers", "diff_ids": [layer.digest for layer in layers]},
            }
            manifest = Manifest(self._put(json.dumps(body).encode(), media.CONFIG), tuple(layers))
            for layer in manifest.blobs:
                if problem := self._size_problem(layer):
                    raise CorruptModel(f"'{name}' was not published: {problem}; run the command again")
            replaced = self._digests(name)
            write_file(self._manifest_path(name), manifest.encode())
            self._drop_unused(replaced)
        return self._open(name)

    def add_reference(
        self, name: ModelName, reference: Reference, config: Mapping[str, Any], texts: Mapping[str, str]
    ) -> StoredModel:
        """Name a model that stays where it is; arguments as for `add_model`."""
        with disk_errors(self.root):
            layer = self._put(reference.encode(), media.REFERENCE)
        return self.add_model(name, layer, config, texts)

    def delete(self, name: ModelName | str) -> ModelName:
        """Remove a model, and those of its blobs that no other model uses; returns the name removed."""
        name = self.locate(name)
        with disk_errors(self.root), self._locked():
            digests = self._digests(name)
            path = self._manifest_path(name)
            path.unlink(missing_ok=True)
            sync_folder(path.parent)
            self._drop_empty_folders(path.parent)
            self._drop_unused(digests)
        return name

    def _put(self, data: bytes, media_type: str) -> Layer:
        with self.new_blob() as file:
            file.write(data)
            return self.publish_blob(file, media_type)

    def _digests(self, name: ModelName) -> set[str]:
        """The blobs that the name refers to, as far as its manifest can be read."""
        try:
            return {layer.digest for layer in self.read_manifest(name)[0].blobs}
        except (CorruptModel, FileNotFoundError):
            return set()

    def _drop_unused(self, digests: set[str]) -> None:
        """Remove those blobs that no model uses any more; none while some manifest is unreadable."""
        used = self._used_digests()
        for digest in digests - used if used is not None else ():
            self.blob_path(digest).unlink(missing_ok=True)

    def _drop_empty_folders(self, folder: Path) -> None:
        while folder != self.manifests and not any(folder.iterdir()):
            folder.rmdir()
            folder = folder.parent

    def _locked(self) -> FileLock:
        """Held while manifests change, so that no blob is removed while a manifest begins to use it."""
        return FileLock(self.root / ".lock")

    # Upkeep

    def verify(self, name: ModelName | str | None = None, *, hashes: bool = True) -> builtins.list[Damage]:
        """All damage to one model or to all; without `hashes` only presence and sizes are looked at."""
        names = [self.locate(name)] if name is not None else self.names()
        damages, checked = [], dict[str, str]()
        for each in names:
            try:
                blobs = self.read_manifest(each)[0].blobs
            except (CorruptModel, OSError) as error:
                damages.append(Damage(each.display, str(error)))
                continue
            for layer in blobs:
                if layer.digest not in checked:
                    problem = self._problem(layer) if hashes else self._size_problem(layer)
                    checked[layer.digest] = problem or self._place_problem(layer)
                if checked[layer.digest]:
                    damages.append(Damage(each.display, checked[layer.digest]))
        return damages

    def gc(self, dry_run: bool = False) -> builtins.list[Garbage]:
        """Remove blobs and unfinished files that nothing refers to; returns them. Fresh ones are spared."""
        with disk_errors(self.root), self._locked():
            used = self._used_digests()
            if used is None:
                raise CorruptModel("some manifest is damaged, so its blobs are unknown: see `corral doctor`")
            garbage = [
                Garbage(path, path.stat().st_size)
                for path in sorted(self.blobs.glob("sha256-*"))
                if path.name.replace("-", ":", 1) not in used and _older(path, GRACE)
            ]
            for item in () if dry_run else garbage:
                item.path.unlink(missing_ok=True)
        return garbage

    def prune(self) -> None:
        """Remove what killed pulls and writes left behind, once it is a day old."""
        for path in (*self.blobs.glob(f"{TEMPORARY}*"), *self.manifests.rglob(f"{TEMPORARY}*")):
            if _older(path, STALE):
                path.unlink(missing_ok=True)
        for path in self.partial.glob("*"):
            if path.is_dir() and _older(path, STALE):
                lock = FileLock(path.with_name(f"{path.name}.lock"))
                if lock.try_acquire():
                    shutil.rmtree(path, ignore_errors=True)
                    lock.remove()

    def _used_digests(self) -> set[str] | None:
        """Digests that any manifest refers to; None if a manifest cannot be read."""
        used = set[str]()
        for name in self.names():
            try:
                used.update(layer.digest for layer in self.read_manifest(name)[0].blobs)
            except CorruptModel:
                return None
        return used

    def _size_problem(self, layer: Layer) -> str:
        """What is wrong with a blob, as far as its size tells; empty if nothing."""
        try:
            size = self.blob_path(layer.digest).stat().st_size
        except OSError:
            return f"blob {layer.digest[7:19]} is missing"
        if size != layer.size:
            return f"blob {layer.digest[7:19]} has {size} bytes instead of {layer.size}"
        return ""

    def _place_problem(self, layer: Layer) -> str:
        """What is wrong with the place that a reference names."""
        try:
            place = self._reference(layer)
        except CorruptModel as error:
            return str(error)
        return f"there is nothing at {place.path} any more" if place and not Path(place.path).exists() else ""

    def _problem(self, layer: Layer) -> str:
        if problem := self._size_problem(layer):
            return problem
        found = hash_file(self.blob_path(layer.digest))
        return "" if found == layer.digest[7:] else f"blob {layer.digest[7:19]} has the sha256 {found[:12]}"


def hash_file(path: Path) -> str:
    """The file's sha256 in hex."""
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def nearest_name(name: ModelName, candidates: builtins.list[ModelName]) -> ModelName | None:
    """The candidate that `name` was probably meant to be: the model's own name counts before its tag."""
    import difflib  # here: seldom needed

    def nearness(other: ModelName) -> tuple[float, float]:
        pairs = ((_untagged(name), _untagged(other)), (name.tag.lower(), other.tag.lower()))
        base, tag = (difflib.SequenceMatcher(None, *pair).ratio() for pair in pairs)
        return base, tag

    best = max(candidates, key=nearness, default=None)
    return best if best and nearness(best)[0] >= 0.6 else None


def _untagged(name: ModelName) -> str:
    return name.display.lower().rpartition(":")[0]


def _entries(folder: Path) -> Iterator[Path]:
    """What is in a folder, in order; nothing if it has just been removed."""
    try:
        yield from sorted(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return


def _older(path: Path, age: float) -> bool:
    try:
        return time.time() - os.stat(path).st_mtime > age
    except OSError:
        return False
