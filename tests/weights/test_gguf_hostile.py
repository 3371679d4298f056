"""Hostile GGUF files: only CorralError escapes, within bounds of time and memory."""

import signal
import subprocess
import sys
from pathlib import Path

import gguf_bytes as raw
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from corral.errors import CorralError
from corral.weights.gguf import open_gguf
from corral.weights.tensors import load_tensor

EXTREMES = (0, 1, 7, 2**31, 2**40, 2**63, 2**64 - 1)


def read_all(path: Path) -> bool:
    """Open a file and touch everything in it; False if it was refused with a CorralError."""
    try:
        with open_gguf(path) as file:
            for value in file.metadata.values():
                if not isinstance(value, str | int | float):
                    value.tolist()
            for name in file.tensors:
                file.release(name)
                load_tensor(file, name).dequantize()
    except CorralError as error:
        assert path.name in str(error) or "not UTF-8" in str(error)
        return False
    return True


def test_valid_file_is_read(tmp_path) -> None:
    assert read_all(raw.write(tmp_path / "m.gguf", raw.small()))


def test_file_cut_off_anywhere_is_refused(tmp_path) -> None:
    content = raw.small()
    read = [n for n in range(len(content)) if read_all(raw.write(tmp_path / "m.gguf", content[:n]))]
    assert read == []


@pytest.mark.parametrize("width", [4, 8])
def test_extreme_numbers_anywhere_are_read_or_refused(tmp_path, width) -> None:
    content = raw.small()
    refused = 0
    for at in range(len(content) - 100 - width):
        for number in EXTREMES:
            changed = bytearray(content)
            changed[at : at + width] = raw.u64(number)[:width]
            refused += not read_all(raw.write(tmp_path / "m.gguf", bytes(changed)))
    assert refused > 1000


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    edits=st.lists(st.tuples(st.integers(0, 450), st.integers(0, 255)), max_size=6),
    inserted=st.tuples(st.integers(0, 450), st.binary(max_size=24)),
    length=st.integers(0, 600),
)
def test_random_damage_is_read_or_refused(tmp_path, edits, inserted, length) -> None:
    content = bytearray(raw.small())
    for at, byte in edits:
        content[at % len(content)] = byte
    content[inserted[0] : inserted[0]] = inserted[1]
    read_all(raw.write(tmp_path / "m.gguf", bytes(content[:length])))


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tensors=st.integers(0, 3), keys=st.integers(0, 3), rest=st.binary(max_size=300))
def test_random_bytes_after_a_header_are_read_or_refused(tmp_path, tensors, keys, rest) -> None:
    read_all(raw.write(tmp_path / "m.gguf", raw.header(tensors, keys) + rest))


def _keys(count: int, value: bytes) -> bytes:
    return b"".join(raw.text(f"{i:07}".ljust(60, "k")) + value for i in range(count))


def _tensors(count: int) -> bytes:
    return b"".join(raw.tensor(f"{i:06}".ljust(60, "t"), [1, 1, 1, 1]) for i in range(count))


EMPTY_STRINGS = raw.text("k") + raw.u32(raw.ARRAY) + raw.u32(raw.STRING)
LARGE = {
    "most keys": (raw.header(0, 100_000) + _keys(100_000, raw.u32(raw.U64) + raw.u64(2**63)), None, True),
    "most string keys": (
        raw.header(0, 100_000) + _keys(100_000, raw.u32(raw.STRING) + raw.text("日本")),
        None,
        True,
    ),
    "most tensors": (raw.header(100_000, 0) + _tensors(100_000), 32 << 20, True),
    "most strings": (raw.header(0, 1) + EMPTY_STRINGS + raw.u64(1 << 21), 1 << 30, True),
    "more strings": (raw.header(0, 1) + EMPTY_STRINGS + raw.u64(1 << 22), 1 << 30, False),
    "strings that end badly": (
        raw.header(0, 1) + EMPTY_STRINGS + raw.u64(1 << 21) + bytes(8 << 20) + raw.u64(2**63),
        1 << 30,
        False,
    ),
    "most numbers": (
        raw.header(0, 1) + raw.text("k") + raw.u32(raw.ARRAY) + raw.u32(raw.F64) + raw.u64(1 << 26),
        1 << 30,
        True,
    ),
    "longest string": (
        raw.header(0, 1) + raw.text("k") + raw.u32(8) + raw.text("😀", (8 << 20) - 1),
        1 << 30,
        True,
    ),
    "long strings": (
        raw.header(0, 8)
        + b"".join(raw.text(f"{i}") + raw.u32(8) + raw.text(bytes(2 << 20)) for i in range(8)),
        None,
        False,
    ),
    "long keys": (
        raw.header(0, 50_000)
        + b"".join(raw.text(f"{i:07}".ljust(1000)) + raw.u32(0) + b"\0" for i in range(9_000))
        + bytes(2_000_000),
        None,
        False,
    ),
}
# Opens the file with 64 MB beyond what the bare interpreter takes, and at most 5 s of processor time.
GUARDED = """
import resource, signal, sys
from corral.errors import CorralError
from corral.weights.gguf import open_gguf
fields = dict(line.split(":") for line in open("/proc/self/status"))
used = int(fields["VmData"].split()[0]) << 10
resource.setrlimit(resource.RLIMIT_DATA, (used + (64 << 20),) * 2)
signal.setitimer(signal.ITIMER_PROF, 5)
try:
    open_gguf(sys.argv[1])
except CorralError:
    sys.exit(3)
"""


@pytest.mark.parametrize("case", LARGE)
def test_large_file_is_bounded_in_time_and_memory(tmp_path, case) -> None:
    content, size, valid = LARGE[case]
    path = raw.write(tmp_path / "m.gguf", content, size)
    ended = subprocess.run([sys.executable, "-c", GUARDED, path], capture_output=True, text=True, check=False)
    assert ended.returncode == (0 if valid else 3), ended.stderr[-500:]


def test_the_guard_itself_catches_memory_and_time(tmp_path) -> None:
    for body, expected in (("bytearray(80 << 20)", 1), ("while True: pass", -signal.SIGPROF)):
        code = GUARDED.replace("open_gguf(sys.argv[1])", body).replace("PROF, 5", "PROF, 0.1")
        ended = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
        assert ended.returncode == expected
