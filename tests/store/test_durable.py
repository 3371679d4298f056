import errno
import os

import pytest

from corral.errors import CorralError, CorruptModel, PullFailed, UnsupportedModel
from corral.store import durable
from corral.store.local import Store
from corral.store.lock import FileLock
from corral.store.pull import pull

CALLS = ("open", "write", "fsync", "replace")


class Faulty:
    """Stands in for `os`, and fails the N-th of the calls that change the disk."""

    def __init__(self, fail_at, code=errno.EIO):
        self.fail_at, self.code, self.count = fail_at, code, 0

    def __getattr__(self, name):
        real = getattr(os, name)
        if name not in CALLS:
            return real

        def call(*args, **kwargs):
            self.count += 1
            if self.count == self.fail_at:
                raise OSError(self.code, os.strerror(self.code), str(args[0]))
            return real(*args, **kwargs)

        return call


def add(store, path):
    for _ in pull(store, str(path), name="new:x", local_files=True):
        pass


def check_whole(store, expected):
    """Whatever happened, the store has these models, each of them whole, and nothing half-written."""
    assert {model.name.display for model in store.list()} == expected
    assert store.verify() == []
    assert not list(store.root.rglob(".corral-*"))


def take(store, path, name):
    list(pull(store, str(path), name=name, local_files=True))


@pytest.fixture
def store(tmp_path):
    store = Store(tmp_path / "models")
    (tmp_path / "old.gguf").write_bytes(b"old weights")
    take(store, tmp_path / "old.gguf", "old")
    return store


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "new.gguf"
    path.write_bytes(os.urandom(100_000))
    return path


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC])
def test_failing_any_one_call_leaves_the_store_whole_and_the_next_pull_succeeds(store, source, code):
    fail_at, failed = 0, 0
    while True:
        fail_at += 1
        with pytest.MonkeyPatch.context() as patch:
            faulty = Faulty(fail_at, code)
            patch.setattr(durable, "os", faulty)
            try:
                add(store, source)
            except CorralError as error:
                failed += 1
                assert code != errno.ENOSPC or (
                    isinstance(error, PullFailed) and "disk is full" in str(error)
                )
        # A fault after the manifest's rename is reported although the model is there: that is the safe side.
        present = {model.name.display for model in store.list()}
        check_whole(store, {"old:latest"} | (present & {"new:x"}))
        if faulty.count < fail_at:
            break
        add(store, source)
        check_whole(store, {"old:latest", "new:x"})
        store.delete("new:x")
    assert failed >= 12  # blob, config and manifest: an open, a write, two fsyncs and a rename each, at least
    check_whole(store, {"old:latest", "new:x"})


def test_a_failed_replacement_keeps_the_old_model(store, source):
    old = store.find("old")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            durable.os, "replace", lambda *_: (_ for _ in ()).throw(OSError(errno.EIO, "I/O error"))
        )
        with pytest.raises(CorralError):
            list(pull(store, str(source), name="old", local_files=True))
    assert store.find("old") == old and store.verify() == []


@pytest.mark.parametrize("error", [CorruptModel("cut off"), UnsupportedModel("mamba")])
def test_a_file_that_inspection_refuses_is_never_published(store, source, error):
    seen = []

    def inspect(path):
        seen.append(path.read_bytes())
        raise error

    with pytest.raises(type(error), match=str(error)):
        list(pull(store, str(source), name="new", inspect=inspect, local_files=True))
    assert seen == [source.read_bytes()]
    check_whole(store, {"old:latest"})
    assert store.gc() == []


def test_the_file_is_seen_by_nobody_until_it_is_published(tmp_path):
    target = tmp_path / "target"
    with durable.DurableFile(tmp_path) as file:
        file.write(b"half")
        assert not target.exists()
        file.write(b" and half")
        assert file.seal() == file.digest
        file.publish(target)
    assert target.read_bytes() == b"half and half"
    assert list(tmp_path.iterdir()) == [target]


def test_leaving_without_publishing_removes_the_file(tmp_path):
    with durable.DurableFile(tmp_path) as file:
        file.write(b"x")
    assert list(tmp_path.iterdir()) == []


def test_changing_the_source_afterwards_leaves_the_store_alone(store, source):
    before = source.read_bytes()
    add(store, source)
    with source.open("r+b") as file:
        file.write(b"overwritten in place")
    assert store.find("new:x").path.read_bytes() == before and store.verify() == []


def test_a_lock_is_exclusive_and_survives_the_removal_of_its_file(tmp_path):
    first, second = FileLock(tmp_path / "a.lock"), FileLock(tmp_path / "a.lock")
    assert first.try_acquire() and not second.try_acquire()
    first.remove()
    assert second.try_acquire() and not first.try_acquire()
    second.release()
    second.release()
    assert first.try_acquire()
    first.release()


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_full_disk_is_named_and_leaves_the_store_whole(tmp_path):
    import subprocess

    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", disk], capture_output=True)
    if mounted.returncode:
        pytest.skip("this machine does not let root mount")
    try:
        store, big = Store(disk / "models"), tmp_path / "big.gguf"
        (tmp_path / "small.gguf").write_bytes(b"x" * 1000)
        take(store, tmp_path / "small.gguf", "old")
        big.write_bytes(os.urandom(2 << 20))
        with pytest.raises(PullFailed, match="disk is full"):
            add(store, big)
        check_whole(store, {"old:latest"})
        add(store, tmp_path / "small.gguf")
        check_whole(store, {"old:latest", "new:x"})
    finally:
        subprocess.run(["umount", disk], check=True)
