"""GGUF files byte by byte, so that tests can write what no honest writer would."""

import struct
from collections.abc import Sequence
from pathlib import Path

U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 = range(13)
FORMATS = {
    U8: "B",
    I8: "b",
    U16: "H",
    I16: "h",
    U32: "I",
    I32: "i",
    F32: "f",
    BOOL: "?",
    U64: "Q",
    I64: "q",
    F64: "d",
}


def u32(number: int) -> bytes:
    return struct.pack("<I", number)


def u64(number: int) -> bytes:
    return struct.pack("<Q", number)


def text(value: str | bytes, length: int | None = None) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return u64(len(raw) if length is None else length) + raw


def scalar(key: str | bytes, kind: int, value: float | str | bytes) -> bytes:
    packed = text(value) if isinstance(value, str | bytes) else struct.pack("<" + FORMATS[kind], value)
    return text(key) + u32(kind) + packed


def array(key: str, kind: int, values: list, count: int | None = None) -> bytes:
    packed = [text(v) if kind == STRING else struct.pack("<" + FORMATS[kind], v) for v in values]
    return (
        text(key) + u32(ARRAY) + u32(kind) + u64(len(values) if count is None else count) + b"".join(packed)
    )


def tensor(
    name: str | bytes, dims: list[int], kind: int = 0, offset: int = 0, rank: int | None = None
) -> bytes:
    shape = b"".join(map(u64, dims))
    return text(name) + u32(len(dims) if rank is None else rank) + shape + u32(kind) + u64(offset)


def header(tensors: int = 0, keys: int = 0, version: int = 3, magic: bytes = b"GGUF") -> bytes:
    return magic + u32(version) + u64(tensors) + u64(keys)


def whole(
    keys: Sequence[bytes], tensors: Sequence[bytes] = (), data: int = 0, version: int = 3, alignment: int = 32
) -> bytes:
    """A file with `data` bytes (1, 2, 3 ...) after the header."""
    head = header(len(tensors), len(keys), version) + b"".join(keys) + b"".join(tensors)
    padding = -len(head) % alignment if data else 0
    return head + bytes(padding) + bytes(i % 251 + 1 for i in range(data))


def write(path: Path, content: bytes, size: int | None = None) -> Path:
    """Write a file; `size` makes it longer without taking disk space (zeros)."""
    with path.open("wb") as file:
        file.write(content)
        if size is not None:
            file.truncate(size)
    return path


def small() -> bytes:
    """A valid file with every kind of field, as short as can be."""
    keys = [
        scalar("general.architecture", STRING, "llama"),
        scalar("general.alignment", U32, 32),
        scalar("a.flag", BOOL, True),
        array("a.tokens", STRING, ["x", "", "häuser"]),
        array("a.types", I32, [1, -2, 3]),
    ]
    return whole(keys, [tensor("a", [4]), tensor("b", [32, 2], kind=8, offset=32)], data=32 + 68)
