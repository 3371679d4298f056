"""What the server and its render process say to each other: JSON behind its length."""

import struct
from typing import IO

HEADER = struct.Struct("<I")


def read_frame(stream: IO[bytes]) -> bytes | None:
    """The next frame; None at the end of the stream."""
    header = stream.read(HEADER.size)
    if len(header) < HEADER.size:
        return None
    body = stream.read(HEADER.unpack(header)[0])
    return body if len(body) == HEADER.unpack(header)[0] else None


def write_frame(stream: IO[bytes], body: bytes) -> None:
    """Send one frame."""
    stream.write(HEADER.pack(len(body)) + body)
    stream.flush()


class TemplateFailed(Exception):
    """A template cannot be parsed (`syntax`), refused the conversation (`raised`), or failed (`failed`)."""

    def __init__(self, kind: str, message: str):
        super().__init__(message)
        self.kind, self.message = kind, message
