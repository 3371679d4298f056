"""The GGUF reader: metadata and tensor table of a mapped file, checked against the file's size before use.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. A file is header, key-value pairs, tensor
table and, aligned, the tensors' data. Versions 2 and 3, little-endian. No array library is imported here: the
API process reads metadata too. Tensors become QTensors in weights/tensors.py.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

from corral.errors import CorruptModel
from corral.weights.cursor import Cursor, MetadataValue, StringArray
from corral.weights.ggml_types import REMOVED_TYPES, TENSOR_TYPES, TensorType
from corral.weights.mapped import MappedFile

__all__ = ["GGUFFile", "MetadataValue", "StringArray", "TensorInfo", "open_gguf"]

MAGIC = b"GGUF"
VERSIONS = (2, 3)
DEFAULT_ALIGNMENT = 32
MAX_ALIGNMENT = 64 << 10
MAX_TENSORS = MAX_KEYS = 100_000
MAX_DIMS = 4
MAX_KEY_LENGTH = 1024
MAX_NAME_LENGTH = 256
# The fewest bytes that one entry can take: a KV pair 8 + 1 + 4 + 1, a tensor 8 + 1 + 4 + 8 + 4 + 8.
MIN_KEY_BYTES, MIN_TENSOR_BYTES = 14, 33


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """A tensor's place in the file."""

    name: str
    shape: tuple[
        int, ...
    ]  # rows first: (rows, cols), (n,) for a vector; the file has them the other way round
    type: str  # Q4_K, F32
    offset: int  # from the file's beginning
    nbytes: int


class GGUFFile(MappedFile):
    """An open GGUF file: `metadata` by key and `tensors` by name.

    Arrays in the metadata and tensors are views on the mapped file; `close` ends the arrays' lives.
    """

    def __init__(self, path: Path):
        super().__init__(path, "GGUF", len(MAGIC))
        cursor = Cursor(self.data, self.view, path.name)
        self.version, tensor_count, key_count = _read_header(cursor)
        self.metadata = _read_metadata(cursor, key_count)
        self.tensors = _read_tensors(cursor, tensor_count, _alignment(cursor, self.metadata), self.size)

    def tensor_bytes(self, name: str) -> memoryview:
        """The tensor's raw bytes, not copied. CorruptModel if there is no such tensor."""
        info = self.tensors.get(name)
        if info is None:
            raise CorruptModel(f"{self.path.name}: the tensor '{name}' is missing")
        return self.view[info.offset : info.offset + info.nbytes]

    def release(self, name: str) -> None:
        """Give back the memory of a tensor's pages; reading them again fetches them from the file again."""
        info = self.tensors[name]
        self.release_bytes(info.offset, info.nbytes)

    def close(self) -> None:
        """End the use of the file."""
        for value in self.metadata.values():
            if isinstance(value, memoryview):
                value.release()
        super().close()


def open_gguf(path: Path | str) -> GGUFFile:
    """Map a GGUF file and read its metadata and tensor table; the errors say what is wrong and where."""
    return GGUFFile(Path(path))


def _read_header(cursor: Cursor) -> tuple[int, int, int]:
    """Version, number of tensors, number of key-value pairs."""
    magic = cursor.take_bytes(4)
    if magic != MAGIC:
        cursor.corrupt(f"not a GGUF file: it begins with {magic!r}")
    version = cursor.u32()
    if version not in VERSIONS:
        swapped = int.from_bytes(version.to_bytes(4, "little"), "big")
        if swapped in VERSIONS:
            cursor.unsupported("the file is big-endian; convert it to little-endian")
        cursor.unsupported(
            f"GGUF version {version}; this version of corral reads {VERSIONS[0]} and {VERSIONS[1]}"
        )
    tensors = cursor.count("tensors", MAX_TENSORS, MIN_TENSOR_BYTES)
    keys = cursor.count("keys", MAX_KEYS, MIN_KEY_BYTES)
    return version, tensors, keys


def _read_metadata(cursor: Cursor, count: int) -> dict[str, MetadataValue]:
    metadata: dict[str, MetadataValue] = {}
    for i in range(count):
        cursor.where = f"key {i + 1} of {count}"
        key = cursor.name(MAX_KEY_LENGTH)
        cursor.where = f"key '{key}'"
        if key in metadata:
            cursor.corrupt("it is there twice")
        metadata[key] = cursor.value(key)
    return metadata


def _alignment(cursor: Cursor, metadata: Mapping[str, MetadataValue]) -> int:
    alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    cursor.where = "key 'general.alignment'"
    if type(alignment) is not int or not 8 <= alignment <= MAX_ALIGNMENT or alignment & (alignment - 1):
        cursor.corrupt(f"{alignment!r} is not a power of two from 8 to {MAX_ALIGNMENT}")
    return alignment


def _read_tensors(cursor: Cursor, count: int, alignment: int, size: int) -> dict[str, TensorInfo]:
    """The tensor table. Where the data begins is known only after it: bounds are a second pass."""
    entries: dict[str, tuple[tuple[int, ...], TensorType, int]] = {}
    for i in range(count):
        cursor.where = f"tensor {i + 1} of {count}"
        name = cursor.name(MAX_NAME_LENGTH)
        cursor.where = f"tensor '{name}'"
        if name in entries:
            cursor.corrupt("it is there twice")
        entries[name] = _read_tensor(cursor, alignment)
    base = -(-cursor.pos // alignment) * alignment
    tensors: dict[str, TensorInfo] = {}
    for name, (dims, kind, offset) in entries.items():
        start, nbytes = base + offset, prod(dims) // kind.block * kind.nbytes
        if start + nbytes > size:
            cursor.where = f"tensor '{name}'"
            cursor.corrupt(f"its {nbytes} bytes at {start} go beyond the end: the file is cut off or lies")
        tensors[name] = TensorInfo(name, dims[::-1], kind.name, start, nbytes)
    return tensors


def _read_tensor(cursor: Cursor, alignment: int) -> tuple[tuple[int, ...], TensorType, int]:
    """Dimensions (columns first), type and offset in the data of the table's next entry."""
    rank = cursor.u32()
    if not 1 <= rank <= MAX_DIMS:
        cursor.corrupt(f"it has {rank} dimensions, not 1 to {MAX_DIMS}")
    dims = cursor.u64s(rank)
    if 0 in dims:
        cursor.corrupt(f"its shape {list(dims)} has a zero")
    number = cursor.u32()
    kind = TENSOR_TYPES.get(number)
    if kind is None:
        known = REMOVED_TYPES.get(number)
        cursor.unsupported(
            f"its type is {known}, which GGUF no longer has" if known else f"unknown type {number}"
        )
    if dims[0] % kind.block:
        cursor.corrupt(f"a row of {dims[0]} weights is not whole blocks of {kind.block} ({kind.name})")
    offset = cursor.u64()
    if offset % alignment:
        cursor.corrupt(f"its offset {offset} is not a multiple of {alignment}")
    return dims, kind, offset
