"""What the server and its render process say to each other."""

import struct
from typing import IO, Any

import msgspec

HEADER = struct.Struct("<I")  # a frame: this length, then msgpack


class Task(msgspec.Struct, frozen=True, array_like=True):
    """Render `source` with `context`; without one, tell which variables it reads."""

    source: str
    context: dict[str, Any] | None


class Answer(msgspec.Struct, frozen=True, array_like=True):
    """The text, or the kind of failure and its message."""

    text: str = ""
    variables: list[str] = []
    failure: str = ""


def read_frame(stream: IO[bytes]) -> bytes | None:
    """The next frame; None at the end of the stream."""
    header = stream.read(HEADER.size)
    if len(header) < HEADER.size:
        return None
    body = stream.read(HEADER.unpack(header)[0])
    return body if len(body) == HEADER.unpack(header)[0] else None


def write_frame(stream: IO[bytes], message: Task | Answer) -> None:
    """Send one frame."""
    body = msgspec.msgpack.encode(message)
    stream.write(HEADER.pack(len(body)) + body)
    stream.flush()


class TemplateFailed(Exception):
    """A template cannot be parsed (`syntax`), refused the conversation (`raised`), or failed (`failed`)."""

    def __init__(self, kind: str, message: str):
        super().__init__(message)
        self.kind, self.message = kind, message
