"""Frames on a stream of bytes between two of our processes: a 4-byte little-endian length, then the body."""

import struct
from collections.abc import Callable

_LENGTH = struct.Struct("<I")

HEADER = _LENGTH.size

ReadInto = Callable[[memoryview], int | None]  # a file's readinto, a socket's recv_into


class BadFrame(Exception):
    """The other side does not speak this protocol; the connection cannot go on."""


def pack(body: bytes, most: int) -> bytes:
    """The frame of a body; BadFrame if that has more bytes than `most`."""
    if len(body) > most:
        raise BadFrame(f"a frame of {len(body)} bytes is longer than {most}")
    return _LENGTH.pack(len(body)) + body


def body_length(header: bytes | bytearray, most: int) -> int:
    """The length that a header announces; BadFrame if it is 0 or more than `most`."""
    (length,) = _LENGTH.unpack(header)
    if not 0 < length <= most:
        raise BadFrame(f"a frame of {length} bytes; at most {most} are allowed")
    return int(length)


def read(read_into: ReadInto, most: int) -> bytearray | None:
    """The next frame's body, waited for; None if the stream has ended between two, BadFrame if within one."""
    header = bytearray(HEADER)
    if not _fill(header, read_into):
        return None
    body = bytearray(body_length(header, most))
    if not _fill(body, read_into):
        raise BadFrame("the stream has ended inside a frame")
    return body


def _fill(data: bytearray, read_into: ReadInto) -> bool:
    """Read so many bytes; whether any came before the stream's end."""
    view, done = memoryview(data), 0
    while done < len(data):
        count = read_into(view[done:])
        if not count:
            if done:
                raise BadFrame("the stream has ended inside a frame")
            return False
        done += count
    return True
