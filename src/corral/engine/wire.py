"""Messages on a blocking socket: the engine process's side of `protocol`."""

import socket

import msgspec

from corral import frames
from corral.engine.protocol import MAX_FRAME, FromEngine, ToEngine
from corral.frames import HEADER, BadFrame

__all__ = [
    "HEADER",
    "BadFrame",
    "decode_from_engine",
    "decode_to_engine",
    "encode_frame",
    "frame_length",
    "receive",
]

_encoder = msgspec.msgpack.Encoder()
_to_engine: msgspec.msgpack.Decoder[ToEngine] = msgspec.msgpack.Decoder(ToEngine)
_from_engine: msgspec.msgpack.Decoder[FromEngine] = msgspec.msgpack.Decoder(FromEngine)


def encode_frame(message: ToEngine | FromEngine) -> bytes:
    """The message's frame; BadFrame if it is too long."""
    return frames.pack(_encoder.encode(message), MAX_FRAME)


def frame_length(header: bytes | bytearray) -> int:
    """The body's length; BadFrame if it cannot be one."""
    return frames.body_length(header, MAX_FRAME)


def decode_to_engine(body: bytes | bytearray) -> ToEngine:
    """What the server sent; BadFrame if it is no such message."""
    try:
        return _to_engine.decode(body)
    except (msgspec.DecodeError, ValueError) as error:
        raise BadFrame(f"not a message to an engine: {error}") from None


def decode_from_engine(body: bytes | bytearray) -> FromEngine:
    """What the engine sent; BadFrame if it is no such message."""
    try:
        return _from_engine.decode(body)
    except (msgspec.DecodeError, ValueError) as error:
        raise BadFrame(f"not a message of an engine: {error}") from None


def receive(connection: socket.socket) -> ToEngine | None:
    """The next message; None when the server has closed the socket between two."""
    body = frames.read(connection.recv_into, MAX_FRAME)
    return None if body is None else decode_to_engine(body)
