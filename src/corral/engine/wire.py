"""Frames on a blocking socket: the engine process's side of `protocol`."""

import socket
import struct

import msgspec

from corral.engine.protocol import MAX_FRAME, FromEngine, ToEngine

_LENGTH = struct.Struct("<I")
_encoder = msgspec.msgpack.Encoder()
_to_engine: msgspec.msgpack.Decoder[ToEngine] = msgspec.msgpack.Decoder(ToEngine)
_from_engine: msgspec.msgpack.Decoder[FromEngine] = msgspec.msgpack.Decoder(FromEngine)

HEADER = _LENGTH.size


class BadFrame(Exception):
    """The other side does not speak this protocol; the connection cannot go on."""


def encode_frame(message: ToEngine | FromEngine) -> bytes:
    """A length and the message; BadFrame if it is too long."""
    body = _encoder.encode(message)
    if len(body) > MAX_FRAME:
        raise BadFrame(f"a frame of {len(body)} bytes is longer than {MAX_FRAME}")
    return _LENGTH.pack(len(body)) + body


def frame_length(header: bytes | bytearray) -> int:
    """The body's length; BadFrame if it cannot be one."""
    (length,) = _LENGTH.unpack(header)
    if not 0 < length <= MAX_FRAME:
        raise BadFrame(f"a frame of {length} bytes; at most {MAX_FRAME} are allowed")
    return int(length)


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
    header = _read(connection, HEADER)
    if not header:
        return None
    body = _read(connection, frame_length(bytes(header)))
    return decode_to_engine(body)


def _read(connection: socket.socket, size: int) -> bytearray:
    data = bytearray(size)
    view, done = memoryview(data), 0
    while done < size:
        count = connection.recv_into(view[done:])
        if not count:
            if done:
                raise BadFrame("the socket was closed inside a frame")
            return bytearray()
        done += count
    return data
