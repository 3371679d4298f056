"""What the server and its render process say to each other: JSON in frames."""

from typing import IO

from corral import frames

MAX_FRAME = 256 << 20  # bytes; the longest body that a request can have, escaped


def read_frame(stream: IO[bytes]) -> bytearray | None:
    """The next frame; None at the end of the stream, BadFrame where it ends too early."""
    return frames.read(stream.readinto, MAX_FRAME)  # type: ignore[attr-defined]


def write_frame(stream: IO[bytes], body: bytes) -> None:
    """Send one frame."""
    stream.write(frames.pack(body, MAX_FRAME))
    stream.flush()


class TemplateFailed(Exception):
    """A template cannot be parsed (`syntax`), refused the conversation (`raised`), or failed (`failed`)."""

    def __init__(self, kind: str, message: str):
        super().__init__(message)
        self.kind, self.message = kind, message
