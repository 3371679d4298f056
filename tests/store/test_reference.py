"""Models that stay where their owner keeps them."""

import json
import os
import shutil

import pytest

from corral.errors import CorruptModel, InvalidRequest, PullFailed
from corral.store import manifest as media
from corral.store.local import Facts, Store
from corral.store.names import ModelName
from corral.store.pull import is_local_file, name_for, pull
from corral.store.reference import Reference


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "models")


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "My Folder"
    path.mkdir()
    (path / "weights").write_bytes(b"w" * 1000)
    return path


def inspect(path):
    return Facts({"model_format": "safetensors", "model_family": "llama"}, {"temperature": 0.5}, 1000)


def register(store, path, name="mine", **options):
    return [
        step.status
        for step in pull(store, str(path), name=name, inspect=inspect, local_files=True, **options)
    ]


def test_folder_is_named_and_not_copied(store, folder):
    assert register(store, folder) == ["reading model", "writing manifest", "success"]
    model = store.find("mine")
    assert model.path == folder and model.format == "safetensors" and model.params == {"temperature": 0.5}
    assert 1000 < model.size < 3000 and sum(path.stat().st_size for path in store.blobs.iterdir()) < 2000
    assert store.list() == [model] and store.verify() == [] and store.gc(dry_run=True) == []
    store.delete("mine")
    assert folder.exists() and not list(store.blobs.iterdir())


def test_an_edited_folder_is_another_model_once_it_is_named_again(store, folder):
    register(store, folder)
    before = store.find("mine")
    register(store, folder)
    assert store.find("mine").digest == before.digest
    os.utime(folder / "weights", ns=(1, 1))
    register(store, folder)
    assert store.find("mine").digest != before.digest


def test_a_folder_that_is_gone_says_so_and_comes_back(store, folder, tmp_path):
    register(store, folder)
    folder.rename(tmp_path / "elsewhere")
    with pytest.raises(CorruptModel, match=r"there is nothing at .*My Folder any more; remove it with"):
        store.find("mine")
    assert store.list() == [] and "any more" in store.verify()[0].problem
    (tmp_path / "elsewhere").rename(folder)
    assert store.find("mine").path == folder and store.verify() == []


def test_a_file_is_copied_by_pull_and_named_in_place(store, tmp_path):
    file = tmp_path / "m.gguf"
    file.write_bytes(b"weights")
    assert register(store, file)[0] == "pulling manifest"
    assert store.find("mine").path != file
    register(store, file, in_place=True)
    assert store.find("mine").path == file
    part = tmp_path / "m-00001-of-00002.gguf"
    shutil.copy(file, part)
    register(store, part)
    assert store.find("mine").path == part


def test_a_path_is_never_taken_from_a_request(store, folder):
    with pytest.raises(InvalidRequest, match="not by a request"):
        list(pull(store, str(folder), inspect=inspect))


def test_missing_path_is_named(store, tmp_path):
    with pytest.raises(PullFailed, match="there is no file or folder"):
        register(store, tmp_path / "nowhere.gguf", in_place=True)


def test_names_of_folders(monkeypatch, folder):
    monkeypatch.chdir(folder)
    for text in (".", "./", "../My Folder", f"{folder}/"):
        assert is_local_file(text) and name_for(text) == ModelName("my-folder")


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"path": 1}', '{"path": 1, "size": 0, "modified_ns": 0}', "x"]
)
def test_a_damaged_reference_is_corrupt(store, content):
    with store.new_blob() as file:
        file.write(content.encode())
        layer = store.publish_blob(file, media.REFERENCE)
    with pytest.raises(CorruptModel, match="reference"):
        store.add_model(ModelName.parse("x"), layer, {}, {})
    assert store.list() == [] and len(store.verify()) == 1


def test_reference_survives_encoding(folder):
    reference = Reference.to(folder, 7)
    assert Reference.parse(reference.encode().decode()) == reference
    assert json.loads(reference.encode())["path"] == str(folder)
