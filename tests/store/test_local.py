import hashlib
import json
import os
import subprocess
import sys
import time

import pytest

from corral.errors import CorralError, CorruptModel, InvalidName, ModelNotFound, UnsupportedModel
from corral.store import manifest as media
from corral.store.local import Store
from corral.store.names import ModelName
from corral.store.reference import Reference


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "models")


def add(store, name, data=b"GGUF weights", **config):
    with store.new_blob() as file:
        file.write(data)
        weights = store.publish_blob(file, media.MODEL)
    return store.add_model(ModelName.parse(name), weights, config, {media.LICENSE: "free"})


def manifest_path(store, name):
    return store.manifests / ModelName.parse(name).path


def blob_names(store):
    return sorted(path.name for path in store.blobs.iterdir())


def test_added_model_is_listed_and_found_with_its_texts(store):
    added = add(store, "one:a", model_family="llama")
    assert store.list() == [added] and store.find("one:a") == added
    assert added.path.read_bytes() == b"GGUF weights"
    assert added.config["model_family"] == "llama" and added.config["model_format"] == "gguf"
    assert added.license == "free"
    assert added.digest == hashlib.sha256(manifest_path(store, "one:a").read_bytes()).hexdigest()
    assert added.size == sum(path.stat().st_size for path in store.blobs.iterdir())
    assert store.verify() == [] and store.gc(dry_run=True) == []


def test_layout_is_ollamas(store):
    add(store, "one", b"x")
    digest = hashlib.sha256(b"x").hexdigest()
    assert (store.root / "blobs" / f"sha256-{digest}").is_file()
    body = json.loads((store.root / "manifests/registry.ollama.ai/library/one/latest").read_text())
    assert body["schemaVersion"] == 2 and body["layers"][0]["digest"] == f"sha256:{digest}"
    assert body["config"]["mediaType"] == media.CONFIG


def test_store_written_by_ollama_is_read_in_place(store):
    store.blobs.mkdir(parents=True)

    def blob(kind, data):
        digest = hashlib.sha256(data).hexdigest()
        (store.blobs / f"sha256-{digest}").write_bytes(data)
        return {"mediaType": kind, "digest": f"sha256:{digest}", "size": len(data), "from": "/elsewhere"}

    config = blob(media.CONFIG, b'{"model_format":"gguf","model_family":"llama","file_type":"F16"}')
    layers = [
        blob(media.MODEL, b"GGUF"),
        blob(media.TEMPLATE, b"{{ .Prompt }}"),
        blob(media.SYSTEM, b"Be kind"),
    ]
    layers += [blob(media.PARAMS, b'{"stop":["<|im_end|>"]}'), blob(media.LICENSE, b"Apache")]
    path = manifest_path(store, "hub.io/me/Mine:Q8")
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"schemaVersion": 2, "config": config, "layers": layers}))
    model = store.find("HUB.io/me/mine:q8")
    assert model.name.display == "hub.io/me/Mine:Q8"
    assert model.template == "{{ .Prompt }}" and model.system == "Be kind" and model.license == "Apache"
    assert model.params == {"stop": ["<|im_end|>"]} and model.config["file_type"] == "F16"


def test_list_is_newest_first_and_empty_without_a_folder(store):
    assert store.list() == [] and store.verify() == [] and not store.root.exists()
    for age, name in enumerate(("new", "old")):
        add(store, name, name.encode())
        os.utime(manifest_path(store, name), (0, time.time() - 1000 * age))
    assert [model.name.model for model in store.list()] == ["new", "old"]


@pytest.mark.parametrize("damage", [b"", b"{", b'{"config":{},"layers":[]}', b"\0" * 100])
def test_corrupt_manifest_hides_only_its_own_model(store, damage):
    add(store, "good"), add(store, "bad", b"other")
    manifest_path(store, "bad").write_bytes(damage)
    assert [model.name.model for model in store.list()] == ["good"]
    with pytest.raises(CorruptModel, match="corral rm bad:latest"):
        store.find("bad")
    assert [fault.name for fault in store.verify()] == ["bad:latest"]
    with pytest.raises(CorruptModel):
        store.gc()
    store.delete("bad")
    assert store.verify() == []


def test_strange_files_among_the_manifests_are_ignored(store):
    add(store, "good")
    for name in (".corral-123", ".DS_Store", "-x", "a b"):
        (manifest_path(store, "good").parent / name).write_text("?")
    (manifest_path(store, "good").parent / "folder").mkdir()
    assert [model.name.display for model in store.list()] == ["good:latest"]


@pytest.mark.parametrize("damage", ["missing", "short", "zeroed"])
def test_damaged_blob_is_found_by_verify_and_by_size_when_opened(store, damage):
    path = add(store, "one").path
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(b"" if damage == "short" else bytes(path.stat().st_size))
    assert len(store.verify()) == 1
    assert len(store.verify("one", hashes=False)) == (0 if damage == "zeroed" else 1)
    if damage != "zeroed":
        with pytest.raises(CorruptModel, match="pull it again"):
            store.find("one")


def test_model_without_a_gguf_is_unsupported(store):
    with store.new_blob() as file:
        file.write(b"tensor")
        layer = store.publish_blob(file, "application/vnd.ollama.image.tensor")
    with pytest.raises(UnsupportedModel, match="no weights"):
        store.add_model(ModelName.parse("safe"), layer, {}, {})
    assert store.list() == []


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ("smollm2:135m", "model 'smollm2:135m' not found; fetch it with `corral pull smollm2:135m`"),
        ("smolm2", "did you mean 'smollm2:135m'.* `corral pull smollm2:135m`"),
        ("gemma3", "did you mean 'gemma3:270m'"),
        ("my-modle", r"did you mean 'my-model:latest'\?$"),
        ("zzzzqqqq", "model 'zzzzqqqq:latest' not found$"),
    ],
)
def test_missing_model_names_what_comes_near(store, wanted, message):
    add(store, "my-model")
    with pytest.raises(ModelNotFound, match=message):
        store.find(wanted)


def test_hostile_names_reach_no_file(store):
    secret = store.root.parent / "secret"
    secret.write_text("keep")
    for name in ("../secret", "x:../../secret", "..", "/etc/passwd"):
        with pytest.raises(InvalidName):
            store.find(name)
        with pytest.raises(InvalidName):
            store.delete(name)
    assert secret.read_text() == "keep"


def test_delete_spares_blobs_that_another_model_uses(store):
    first = add(store, "one", b"shared")
    add(store, "two", b"shared"), add(store, "three", b"alone")
    assert store.delete("ONE").display == "one:latest"
    assert first.path.exists() and store.verify() == []
    assert not manifest_path(store, "one").parent.exists()
    store.delete("two"), store.delete("three")
    assert blob_names(store) == [] and store.list() == []
    with pytest.raises(ModelNotFound):
        store.delete("one")


def test_delete_keeps_blobs_while_another_manifest_is_unreadable(store):
    first = add(store, "one", b"shared")
    add(store, "two", b"shared")
    manifest_path(store, "two").write_bytes(b"?")
    store.delete("one")
    assert first.path.exists()


def test_replacing_a_model_removes_the_old_blobs(store):
    old = add(store, "one", b"old").path
    new = add(store, "one", b"new").path
    assert not old.exists() and new.read_bytes() == b"new" and store.verify() == []


def test_gc_removes_old_unused_blobs_only(store):
    kept = add(store, "one").path
    fresh, stale = store.blobs / f"sha256-{'0' * 64}", store.blobs / f"sha256-{'1' * 64}"
    for path in (fresh, stale):
        path.write_bytes(b"lost")
    for path in (stale, kept):
        os.utime(path, (0, 0))
    assert [item.path for item in store.gc(dry_run=True)] == [stale] and stale.exists()
    assert [(item.path, item.size) for item in store.gc()] == [(stale, 4)]
    assert kept.exists() and fresh.exists() and not stale.exists()


def test_prune_removes_old_leftovers_and_spares_running_pulls(store):
    add(store, "one")
    old_file, new_file = store.blobs / ".corral-1", store.blobs / ".corral-2"
    old_file.write_text("x"), new_file.write_text("x")
    old, locked, new = (store.partial / name for name in ("old-1", "locked-1", "new-1"))
    for folder in (old, locked, new):
        folder.mkdir(parents=True)
        (folder / "a.whl").write_text("x")
    for path in (old_file, old, locked):
        os.utime(path, (0, 0))
    from corral.store.lock import FileLock

    with FileLock(store.partial / "locked-1.lock"):
        store.prune()
    assert not old_file.exists() and new_file.exists()
    assert not old.exists() and locked.exists() and new.exists()
    assert store.verify() == []


def test_read_only_store_says_what_to_mend(store, monkeypatch):
    def refuse(*_):
        raise PermissionError(13, "Permission denied", str(store.blobs))

    monkeypatch.setattr("corral.store.durable.os.open", refuse)
    with pytest.raises(CorralError, match="permissions"):
        store.add_reference(ModelName.parse("x"), Reference("/x", 0, 0), {}, {})


def test_two_processes_add_and_delete_in_one_store_without_damage(store):
    script = (
        "import sys; from pathlib import Path; from corral.store.local import Store\n"
        "from corral.store import manifest as m; from corral.store.names import ModelName\n"
        "store, me = Store(Path(sys.argv[1])), sys.argv[2]\n"
        "for i in range(15):\n"
        "    with store.new_blob() as f:\n"
        "        f.write(b'shared'); layer = store.publish_blob(f, m.MODEL)\n"
        "    try: store.add_model(ModelName.parse(f'{me}:{i}'), layer, {}, {})\n"
        "    except Exception as e: print(type(e).__name__)\n"
        "    if i % 2: store.delete(f'{me}:{i}')\n"
        "    store.list()\n"
    )
    running = [
        subprocess.Popen([sys.executable, "-c", script, str(store.root), who], stdout=subprocess.PIPE)
        for who in ("a", "b")
    ]
    lost = [word for process in running for word in process.communicate()[0].decode().split()]
    assert [process.returncode for process in running] == [0, 0]
    assert set(lost) <= {"CorruptModel"}  # lost the race for the blob, and said so
    assert store.verify() == []
    assert len(store.list()) + len(lost) >= 14
