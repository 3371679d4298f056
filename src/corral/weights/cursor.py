"""Reads a GGUF header value by value; believes no length before comparing it with the rest of the file."""

import mmap
import struct
from array import array
from collections.abc import Iterator, Sequence
from typing import NoReturn, overload

from corral.errors import CorruptModel, UnsupportedModel

# Caps that no honest file comes near; they bound the time and memory that a hostile one can take.
MAX_TEXT = 8 << 20  # bytes of all keys, tensor names and single strings together
MAX_STRINGS = 1 << 21  # elements of all string arrays together

STRING, ARRAY = 8, 9
_FORMATS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_SCALARS = {number: struct.Struct("<" + letter) for number, letter in _FORMATS.items()}
_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")


class StringArray(Sequence[str]):
    """An array of strings in the file, decoded on access; usable until the file is closed."""

    __slots__ = ("_data", "_ends", "_key", "_start")

    def __init__(self, data: mmap.mmap, start: int, ends: "array[int]", key: str):
        self._data, self._start, self._ends, self._key = data, start, ends, key

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        end = self._ends[index]
        i = index % len(self._ends)
        start = self._ends[i - 1] if i else self._start
        return self._text(self._data[start + 8 : end], i)

    def __iter__(self) -> Iterator[str]:
        return iter(self.tolist())

    def __repr__(self) -> str:
        return f"<{len(self)} strings of {self._key}>"

    def tolist(self) -> list[str]:
        """All strings."""
        return [text.decode() for text in self.encoded()]

    def encoded(self) -> list[bytes]:
        """All strings as UTF-8."""
        first = self._start
        data = self._data[first : self._ends[-1] if self._ends else first]
        ends = [end - first for end in self._ends]
        strings = [data[start + 8 : end] for start, end in zip([0, *ends], ends, strict=False)]
        try:
            b"\0".join(strings).decode()
        except UnicodeDecodeError:
            for i, raw in enumerate(strings):
                self._text(raw, i)
        return strings

    def _text(self, raw: bytes, index: int) -> str:
        try:
            return raw.decode()
        except UnicodeDecodeError:
            raise CorruptModel(f"element {index} of '{self._key}' is not UTF-8") from None


MetadataValue = int | float | bool | str | StringArray | memoryview


class Cursor:
    """A position in a mapped file; `where` says in errors what is being read."""

    def __init__(self, data: mmap.mmap, view: memoryview, name: str):
        self.pos, self.where = 0, "header"
        self._data, self._view, self._name = data, view, name
        self._end = len(data)
        self._text_left, self._strings_left = MAX_TEXT, MAX_STRINGS

    def corrupt(self, problem: str) -> NoReturn:
        """Raise CorruptModel with file, place and problem."""
        raise CorruptModel(f"{self._name}: {self.where}: {problem} (at byte {self.pos} of {self._end})")

    def unsupported(self, problem: str) -> NoReturn:
        """Raise UnsupportedModel with file, place and problem."""
        raise UnsupportedModel(f"{self._name}: {self.where}: {problem}")

    def take(self, size: int) -> int:
        """Step over `size` bytes, which must be there, and return where they begin."""
        start = self.pos
        if size > self._end - start:
            self.corrupt(
                f"{size} bytes are needed, {self._end - start} are left: the file is cut off or lies"
            )
        self.pos = start + size
        return start

    def take_bytes(self, size: int) -> bytes:
        """The next `size` bytes."""
        start = self.take(size)
        return self._data[start : start + size]

    def u32(self) -> int:
        """The next 4 bytes as a number."""
        number: int = _U32.unpack_from(self._data, self.take(4))[0]
        return number

    def u64(self) -> int:
        """The next 8 bytes as a number."""
        number: int = _U64.unpack_from(self._data, self.take(8))[0]
        return number

    def u64s(self, count: int) -> tuple[int, ...]:
        """The next `count` times 8 bytes as numbers."""
        return struct.unpack_from(f"<{count}Q", self._data, self.take(8 * count))

    def count(self, what: str, limit: int, each: int) -> int:
        """A number of things of at least `each` bytes that are still to come."""
        number = self.u64()
        if number > limit:
            self.corrupt(f"{number} {what} exceed the limit of {limit}")
        if number * each > self._end - self.pos:
            self.corrupt(f"{number} {what} cannot be in the {self._end - self.pos} bytes that are left")
        return number

    def raw_text(self, limit: int) -> bytes:
        """A string's bytes."""
        length = self.u64()
        if length > limit:
            self.corrupt(f"a string of {length} bytes exceeds the limit of {limit}")
        self._text_left -= length
        if self._text_left < 0:
            self.corrupt(f"keys, names and strings exceed {MAX_TEXT} bytes in total")
        return self.take_bytes(length)

    def name(self, limit: int) -> str:
        """A key or a tensor's name: must be UTF-8 and not empty."""
        raw = self.raw_text(limit)
        try:
            text = raw.decode()
        except UnicodeDecodeError:
            self.corrupt(f"the name {raw[:60]!r} is not UTF-8")
        if not text:
            self.corrupt("the name is empty")
        return text

    def value(self, key: str) -> MetadataValue:
        """A metadata value with its type in front."""
        kind = self.u32()
        if kind == STRING:
            return self.raw_text(MAX_TEXT).decode(errors="replace")
        if kind == ARRAY:
            return self._array(key)
        scalar = _SCALARS.get(kind)
        if scalar is None:
            self.corrupt(f"{kind} is not a value type")
        value: int | float | bool = scalar.unpack_from(self._data, self.take(scalar.size))[0]
        return value

    def _array(self, key: str) -> StringArray | memoryview:
        kind = self.u32()
        if kind == STRING:
            return self._strings(key)
        if kind == ARRAY:
            self.unsupported("it is an array of arrays, which this version cannot read")
        scalar = _SCALARS.get(kind)
        if scalar is None:
            self.corrupt(f"{kind} is not an array's value type")
        size = self.count("values", 1 << 64, scalar.size) * scalar.size
        start = self.take(size)
        return self._view[start : start + size].cast(_FORMATS[kind])  # type: ignore[call-overload, no-any-return]

    def _strings(self, key: str) -> StringArray:
        count = self.count("strings", self._strings_left, 8)
        self._strings_left -= count
        start = pos = self.pos
        data, unpack = self._data, _U64.unpack_from
        ends = array("Q")
        append = ends.append
        try:
            for _ in range(count):
                pos += 8 + unpack(data, pos)[0]
                append(pos)
        except (struct.error, OverflowError):
            pos = self._end + 1
        if pos > self._end:
            self.corrupt(f"string {len(ends)} of {count} goes beyond the file's end")
        self.pos = pos
        return StringArray(data, start, ends, key)
