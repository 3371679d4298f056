"""Folders that no honest author publishes: refused with a typed error, in 1 s of processor time and 64 MB."""

import json
import os
import signal
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import hf_folders

CONFIG = {"architectures": ["LlamaForCausalLM"]}
TENSORS = {"w": np.ones((2, 2), np.float32)}
# Opens the folder and its text with 64 MB beyond what the bare imports take; exits with 3 for a CorralError.
GUARDED = """
import resource, signal, sys
from corral.errors import CorralError
from corral.text.tokenizer import load_tokenizer
from corral.weights.open import open_source
import corral.text.tokenizer_json, corral.weights.hf_folder
fields = dict(line.split(":") for line in open("/proc/self/status"))
used = int(fields["VmData"].split()[0]) << 10
resource.setrlimit(resource.RLIMIT_DATA, (used + (64 << 20),) * 2)
signal.setitimer(signal.ITIMER_PROF, 1)
try:
    load_tokenizer(open_source(sys.argv[1]).text)
except CorralError as error:
    print(error)
    sys.exit(3)
"""


def sparse(path: Path, size: int, beginning: bytes = b"") -> None:
    with path.open("wb") as file:
        file.write(beginning)
        file.truncate(size)


def header(text: bytes) -> Callable[[Path], None]:
    return lambda folder: hf_folders.write_raw(folder / "model.safetensors", text, bytes(64)) and None


def length(claimed: int) -> Callable[[Path], None]:
    return lambda folder: hf_folders.write_raw(folder / "model.safetensors", b"{}", length=claimed) and None


def content(name: str, data: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(data) and None


def whitespace(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", 100 << 20) + b" " * (100 << 20))


def index(data: bytes) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        (folder / "model.safetensors.index.json").write_bytes(data)

    return write


def pickles(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def link_out(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to("/etc/passwd")


def pipe(folder: Path) -> None:
    (folder / "config.json").unlink()
    os.mkfifo(folder / "config.json")


ENTRY = b'{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'
MANY = b",".join(b'"%07d":' % i + ENTRY for i in range(150_000))
MILLION = 1_000_000
CASES: dict[str, tuple[Callable[[Path], object], str]] = {
    "length 2^63": (length(1 << 63), "claims 9223372036854775808"),
    "100 MB of white space": (whitespace, "at most 12582912 are read"),
    "overlapping offsets": (header(b'{"a":' + ENTRY + b',"b":' + ENTRY + b"}"), "overlap"),
    "shape that disagrees": (
        header(b'{"a":' + ENTRY.replace(b"[1]", b"[2]") + b"}"),
        "does not take 4 bytes",
    ),
    "offsets out of range": (
        header(b'{"a":' + ENTRY.replace(b"[0,4]", b"[0,4096]") + b"}"),
        "outside the file",
    ),
    "key twice": (header(b'{"a":' + ENTRY + b',"a":' + ENTRY + b"}"), "a key twice"),
    "too many tensors": (header(b"{" + MANY + b"}"), "too many entries"),
    "a shape of millions": (
        header(b'{"a":' + ENTRY.replace(b"[1]", b"[" + b"1," * 5 * MILLION + b"1]") + b"}"),
        "dimensions",
    ),
    "deep nesting": (header(b'{"a":' + b"[" * 10 * MILLION), "its header is none"),
    "a large number": (header(b'{"a":' + ENTRY.replace(b"[1]", b"[1" + b"0" * 4000 + b"]") + b"}"), ""),
    "pickles only": (pickles, "convert them to safetensors"),
    "missing shards": (
        index(b'{"weight_map": {"a": "gone.safetensors"}}'),
        "files are missing: gone.safetensors",
    ),
    "index out of the folder": (
        index(b'{"weight_map": {"a": "../../etc/passwd"}}'),
        "not the name of a file",
    ),
    "index of millions": (
        index(b'{"weight_map": {' + b'"a":"b",' * 1_500_000 + b'"a":"b"}}'),
        "too many entries",
    ),
    "index of 200 MB": (
        lambda folder: index(b"{}")(folder) or sparse(folder / "model.safetensors.index.json", 200 << 20),
        "has 209715200 bytes",
    ),
    "link out of the folder": (link_out, "a link out of the folder"),
    "a pipe": (pipe, "is not a file"),
    "deep configuration": (content("config.json", b'{"a":' + b"[" * 1_000_000), "not JSON"),
    "configuration of lists": (
        content("config.json", b'{"a":[' + b"[]," * 340_000 + b"[]]}"),
        "architecture",
    ),
    "configuration of 200 MB": (
        lambda folder: sparse(folder / "config.json", 200 << 20),
        "has 209715200 bytes",
    ),
    "remote code alone": (content("config.json", b'{"auto_map": {"AutoModel": "m.M"}}'), "never run"),
    "tokenizer.json of 200 MB": (
        lambda folder: sparse(folder / "tokenizer.json", 200 << 20),
        "has 209715200 bytes",
    ),
    "tokenizer.model of 200 MB": (
        lambda folder: (folder / "tokenizer.json").unlink() or sparse(folder / "tokenizer.model", 200 << 20),
        "has 209715200 bytes",
    ),
    "settings of lists": (content("tokenizer_config.json", b'{"a":[' + b"[]," * 2_700_000 + b"[]]}"), ""),
    "deep tokenizer.json": (content("tokenizer.json", b'{"model":' + b"[" * 10 * MILLION), "cannot be read"),
}


@pytest.mark.parametrize("case", CASES)
def test_hostile_folder_is_refused_in_little_time_and_memory(tmp_path: Path, case: str) -> None:
    change, message = CASES[case]
    folder = hf_folders.write_folder(tmp_path / "m", CONFIG, TENSORS, files={"tokenizer.json": "{}"})
    change(folder)
    ended = subprocess.run(
        [sys.executable, "-c", GUARDED, str(folder)], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 3, (ended.returncode, ended.stderr[-800:])
    assert message in ended.stdout


def test_the_guard_itself_catches_memory_and_time(tmp_path: Path) -> None:
    for body, expected in (("bytearray(80 << 20)", 1), ("while True: pass", -signal.SIGPROF)):
        code = GUARDED.replace("load_tokenizer(open_source(sys.argv[1]).text)", body)
        ended = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
        assert ended.returncode == expected


def test_nothing_of_a_folder_is_imported_or_run(tmp_path: Path) -> None:
    """A pickle, a module and a tokeniser's code that would leave a file behind."""
    trap = f"import pathlib; pathlib.Path({str(tmp_path / 'ran')!r}).touch()"
    config = {**CONFIG, "auto_map": {"AutoModelForCausalLM": "modeling.M"}}
    settings = {"auto_map": {"AutoTokenizer": ["tokenization.T", None]}, "tokenizer_class": "T"}
    files = {"modeling.py": trap, "tokenization.py": trap, "tokenizer_config.json": json.dumps(settings)}
    folder = hf_folders.write_folder(tmp_path / "m", config, TENSORS, files={**files, "tokenizer.json": "{}"})
    pickled = b"cposix\nsystem\n(S'touch " + str(tmp_path / "ran").encode() + b"'\ntR."
    (folder / "pytorch_model.bin").write_bytes(pickled)
    ended = subprocess.run([sys.executable, "-c", GUARDED, str(folder)], cwd=folder, check=False)
    assert ended.returncode == 3 and not (tmp_path / "ran").exists()
