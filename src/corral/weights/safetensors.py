"""The safetensors reader: the header of a mapped file, checked against the file's size before use.

Format: https://huggingface.co/docs/safetensors. A file is 8 bytes with the header's length, the header, which
is one JSON object, and the tensors' bytes. No array library is imported here.
"""

import re
import struct
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import NoReturn

import msgspec

from corral.errors import CorruptModel, UnsupportedModel
from corral.weights.gguf import TensorInfo
from corral.weights.mapped import MappedFile

__all__ = ["SafetensorsFile"]

MAX_HEADER = 12 << 20  # bytes: 100,000 tensors of long names
MAX_COLONS = 400_000  # four a tensor
MAX_DIMS, MAX_SIZE = 8, 1 << 48
BYTES_OF = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 1),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 2),
    **dict.fromkeys(("U32", "I32", "F32"), 4),
    **dict.fromkeys(("U64", "I64", "F64"), 8),
}
_LENGTH = struct.Struct("<Q")
# A string of a JSON text, and whether it is a key.
_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"(\s*:)?', re.DOTALL)


class _Entry(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    dtype: str
    shape: list[int]
    data_offsets: tuple[int, int]


_read_object = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_read_entry = msgspec.json.Decoder(_Entry).decode
_read_texts = msgspec.json.Decoder(dict[str, str]).decode


class SafetensorsFile(MappedFile):
    """An open safetensors file: `tensors` by name, in the order of their bytes."""

    def __init__(self, path: Path):
        super().__init__(path, "safetensors", _LENGTH.size)
        (length,) = _LENGTH.unpack_from(self.data)
        if length > min(MAX_HEADER, self.size - _LENGTH.size):
            self._corrupt(
                f"its header claims {length} bytes of the file's {self.size}; at most {MAX_HEADER} are read"
            )
        base = _LENGTH.size + length
        tensors = [
            self._tensor(name, entry, base)
            for name, entry in self._read_header(self.data[_LENGTH.size : base]).items()
        ]
        tensors.sort(key=lambda tensor: (tensor.offset, tensor.nbytes))
        for before, after in pairwise(tensors):
            if after.offset < before.offset + before.nbytes:
                self._corrupt(f"the tensors '{before.name:.200}' and '{after.name:.200}' overlap")
        self.tensors = {tensor.name: tensor for tensor in tensors}

    def tensor_bytes(self, name: str) -> memoryview:
        """The tensor's raw bytes, not copied."""
        tensor = self.tensors[name]
        return self.view[tensor.offset : tensor.offset + tensor.nbytes]

    def release(self, name: str) -> None:
        """Give back the memory of a tensor's pages; reading them again fetches them from the file again."""
        tensor = self.tensors[name]
        self.release_bytes(tensor.offset, tensor.nbytes)

    def _read_header(self, header: bytes) -> dict[str, _Entry]:
        if header.count(b":") > MAX_COLONS:
            self._corrupt("its header has too many entries")
        try:
            raw = _read_object(header)
            texts = _read_texts(raw.get("__metadata__", b"{}"))
            entries = {name: _read_entry(value) for name, value in raw.items() if name != "__metadata__"}
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
            self._corrupt(f"its header is none: {error}")
        keys = sum(match[1] is not None for match in _STRING.finditer(header))
        if keys != len(raw) + len(texts) + len(_Entry.__struct_fields__) * len(entries):
            self._corrupt("its header has a key twice")
        return entries

    def _tensor(self, name: str, entry: _Entry, base: int) -> TensorInfo:
        """A tensor's place in the file, which must be inside it and as long as its type and shape say."""
        width = BYTES_OF.get(entry.dtype)
        if width is None:
            raise UnsupportedModel(
                f"{self.path.name}: tensor '{name:.200}' has the unknown type {entry.dtype:.40}"
            )
        (start, end), shape = entry.data_offsets, entry.shape
        if not 0 <= start <= end <= self.size - base:
            self._corrupt(
                f"tensor '{name:.200}' lies at {start} to {end}, outside the file: it is cut off or lies"
            )
        if len(shape) > MAX_DIMS or any(not 0 <= size <= MAX_SIZE for size in shape):
            self._corrupt(f"tensor '{name:.200}' has {len(shape)} dimensions, or one beyond {MAX_SIZE}")
        if prod(shape) * width != end - start:
            self._corrupt(f"tensor '{name:.200}' of {entry.dtype} {shape} does not take {end - start} bytes")
        return TensorInfo(name, tuple(shape), entry.dtype, base + start, end - start)

    def _corrupt(self, problem: str) -> NoReturn:
        raise CorruptModel(f"{self.path.name}: {problem}")
