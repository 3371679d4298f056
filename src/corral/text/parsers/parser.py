"""The stage between detokenised pieces and events; `table.py` says which parser reads whose replies."""

from collections.abc import Sequence
from typing import Protocol

from corral.text.messages import Text, Thought

Said = Text | Thought
Piece = int | str  # a marker's token id, or text


class Parser(Protocol):
    """Reads one reply. What it gives does not depend on how the reply is cut into pieces."""

    @property
    def markers(self) -> frozenset[int]:
        """Control tokens that it must see, which text leaves out; they come as ids between pieces of text."""
        ...

    def push(self, pieces: Sequence[Piece]) -> list[Said]:
        """What these pieces say, as far as it is certain."""
        ...

    def flush(self) -> list[Said]:
        """What was kept back, at the reply's end."""
        ...


class PlainParser:
    """All is text."""

    markers: frozenset[int] = frozenset()

    def push(self, pieces: Sequence[Piece]) -> list[Said]:
        """The text."""
        return [Text(piece) for piece in pieces if isinstance(piece, str)]

    def flush(self) -> list[Said]:
        """Nothing is ever kept back."""
        return []
