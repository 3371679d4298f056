"""Token ids to text as they come, in whole characters."""

import codecs
from collections.abc import Iterable

from corral.text.tokenizer import Tokenizer

__all__ = ["Detokenizer"]

_UTF8 = codecs.getincrementaldecoder("utf-8")


class Detokenizer:
    """Turns one reply's tokens into text; control tokens are left out unless skip_special is false.

    What push() and flush() return, joined, is the whole's bytes decoded with errors="replace"; push() keeps
    back the bytes of an unfinished character. Nothing is stripped: as in llama.cpp, a leading space belongs
    to the reply. `markers` are tokens that pieces() gives by id, where they stand, instead of their text.
    """

    def __init__(
        self, tokenizer: Tokenizer, *, skip_special: bool = True, markers: frozenset[int] = frozenset()
    ):
        self._bytes = tokenizer.token_bytes
        self._skip = tokenizer.is_special if skip_special else None
        self._markers = markers
        self._decoder = _UTF8(errors="replace")

    def push(self, ids: Iterable[int]) -> str:
        """The text that these tokens complete."""
        skip, token_bytes = self._skip, self._bytes
        if skip is None:
            data = b"".join([token_bytes(token) for token in ids])
        else:
            data = b"".join([token_bytes(token) for token in ids if not skip(token)])
        return self._decoder.decode(data)

    def pieces(self, ids: Iterable[int]) -> list[int | str]:
        """The markers among these tokens, and the text that the others complete between them."""
        pieces: list[int | str] = []
        for token in ids:
            piece = token if token in self._markers else self.push((token,))
            if isinstance(piece, str) and pieces and isinstance(pieces[-1], str):
                pieces[-1] += piece
            else:
                pieces.append(piece)
        return pieces

    def flush(self) -> str:
        """The rest at the end of the reply: U+FFFD if a character was left unfinished."""
        return self._decoder.decode(b"", final=True)
