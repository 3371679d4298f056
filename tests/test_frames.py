"""Frames: whole bodies from reads of any size, and no trust in a length."""

import pytest

from corral import frames
from corral.frames import BadFrame


def reader(data: bytes, most: int):
    """A recv_into that gives at most so many bytes at a time."""
    rest = bytearray(data)

    def read_into(view: memoryview) -> int:
        count = min(len(view), most, len(rest))
        view[:count] = rest[:count]
        del rest[:count]
        return count

    return read_into


@pytest.mark.parametrize("size", [1, 3, 100])
def test_frames_come_out_as_they_went_in(size: int) -> None:
    bodies = [b"a", b"bc" * 20, b"\x00\xff"]
    read_into = reader(b"".join(frames.pack(body, 64) for body in bodies), size)
    assert [frames.read(read_into, 64) for _ in bodies] == bodies
    assert frames.read(read_into, 64) is None


@pytest.mark.parametrize("length", [0, 65, 2**32 - 1])
def test_length_out_of_range_is_refused_before_memory_is_taken(length: int) -> None:
    with pytest.raises(BadFrame, match="at most 64"):
        frames.read(reader(length.to_bytes(4, "little"), 100), 64)


@pytest.mark.parametrize("cut", range(1, 9))
def test_stream_that_ends_inside_a_frame_is_bad(cut: int) -> None:
    with pytest.raises(BadFrame, match="inside a frame"):
        frames.read(reader(frames.pack(b"12345", 64)[:cut], 2), 64)


def test_body_that_is_too_long_is_not_packed() -> None:
    with pytest.raises(BadFrame, match="65 bytes is longer than 64"):
        frames.pack(b"x" * 65, 64)
