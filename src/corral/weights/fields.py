"""A model's fields (layer counts, sizes, constants) read by name, each of one type and in a range.

Names are the canonical ones that `weights/source.py` describes: `attention.head_count`, `rope.freq_base`.
Imports no array library: the server process reads fields too.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from typing import Any, NoReturn

from corral.errors import CorruptModel, UnsupportedModel

MAX_ARRAY = 1024  # elements: one for each layer

# A field of these groups changes what a model computes: one that nothing reads is refused, not passed over.
MEANINGFUL = ("rope.", "attention.", "expert", "feed_forward.")


class Fields:
    """The fields of one model. Reading one marks it as read; `refuse_unread` refuses what is left."""

    def __init__(
        self,
        values: Mapping[str, Any],
        prefix: str = "",
        *,
        spelling: Mapping[str, str] | None = None,
        meaningful: Callable[[str], bool] = lambda name: name.startswith(MEANINGFUL),
    ):
        """`values` by whole names: in them, and in errors, `prefix` stands before a canonical name.

        `spelling` is what errors call a field by its canonical name; `meaningful` says which must be read.
        """
        self._values, self._prefix = values, prefix
        self._spelling, self._meaningful = spelling or {}, meaningful
        self._read: set[str] = set()

    def __contains__(self, name: str) -> bool:
        return self._prefix + name in self._values

    def __iter__(self) -> Iterator[str]:
        start = len(self._prefix)
        return (key[start:] for key in self._values if key.startswith(self._prefix))

    def get(self, name: str) -> Any:
        """The value as the file has it, or None."""
        self._read.add(name)
        return self._values.get(self._prefix + name)

    def array(self, name: str) -> list[Any]:
        """An array's elements; it is bounded before it becomes a list."""
        value = self.get(name)
        if isinstance(value, str) or not isinstance(value, Iterable) or not isinstance(value, Sized):
            self.corrupt(name, f"must be an array, got {value!r:.80}")
        if not 0 < len(value) <= MAX_ARRAY:
            self.corrupt(name, f"must have 1 to {MAX_ARRAY} elements, got {len(value)}")
        return list(value)

    def integer(self, name: str, high: int, *, low: int = 1, default: int | None = None) -> int:
        """An integer from low to high; CorruptModel if it is another thing, or missing without a default."""
        value = self._scalar(name, default)
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            self.corrupt(name, f"must be an integer from {low} to {high}, got {value!r:.80}")
        return value

    def number(self, name: str, low: float, high: float, *, default: float | None = None) -> float:
        """A finite number from low to high."""
        value = self._scalar(name, default)
        if not isinstance(value, int | float) or isinstance(value, bool):
            self.corrupt(name, f"must be a number, got {value!r:.80}")
        if not math.isfinite(value) or not low <= value <= high:
            self.corrupt(name, f"must be from {low:g} to {high:g}, got {value!r:.80}")
        return float(value)

    def text(self, name: str, *, default: str | None = None) -> str:
        """A text."""
        value = self._scalar(name, default)
        if not isinstance(value, str):
            self.corrupt(name, f"must be a text, got {value!r:.80}")
        return value

    def flag(self, name: str, *, default: bool | None = None) -> bool:
        """A truth value."""
        value = self._scalar(name, default)
        if not isinstance(value, bool):
            self.corrupt(name, f"must be a boolean, got {value!r:.80}")
        return value

    def refuse_unread(self, harmless: Iterable[str] = ()) -> None:
        """UnsupportedModel, naming them, if fields that change what the model computes were never read."""
        passed = self._read.union(harmless)
        left = [name for name in self if self._meaningful(name) and name not in passed]
        if left:
            names = ", ".join(f"'{self._spelled(name)}'" for name in sorted(left)[:5])
            raise UnsupportedModel(f"metadata: this version does not know what to do with {names}")

    def corrupt(self, name: str, problem: str) -> NoReturn:
        """Raise CorruptModel, naming the field."""
        raise CorruptModel(f"metadata: '{self._spelled(name)}': {problem}")

    def unsupported(self, name: str, problem: str) -> NoReturn:
        """Raise UnsupportedModel, naming the field."""
        raise UnsupportedModel(f"metadata: '{self._spelled(name)}': {problem}")

    def _spelled(self, name: str) -> str:
        return self._spelling.get(name, self._prefix + name)

    def _scalar(self, name: str, default: Any) -> Any:
        """A single value; an array with a value for each layer is one where they are all the same."""
        value = self.get(name)
        if value is None:
            if default is None:
                self.corrupt(name, "is missing")
            return default
        if isinstance(value, str) or not isinstance(value, Iterable):
            return value
        first, *others = self.array(name)
        if any(other != first for other in others):
            self.unsupported(name, "differs from layer to layer")
        return first
