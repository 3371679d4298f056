"""Finds the tokens that are matched as whole text before anything else: control and user-defined ones."""

from collections.abc import Sequence
from dataclasses import dataclass

import tokenizers
from tokenizers import models

__all__ = ["AddedToken", "AddedTokens"]


@dataclass(frozen=True, slots=True)
class AddedToken:
    """A token that text is searched for, as it is: a normaliser changes only what lies between tokens.

    The flags are those of the `tokenizers` library.
    """

    id: int
    text: str
    lstrip: bool = False  # swallows the white space before it
    rstrip: bool = False  # and after it
    single_word: bool = False  # only where no letter or digit is beside it


class AddedTokens:
    """A set of added tokens. Of two that overlap, the one that begins first wins, then the longer one.

    The search is that of the `tokenizers` library with a model that knows no words: its time is linear in the
    text's length whatever the text, and it releases the interpreter's lock (encode() would not).
    """

    def __init__(self, tokens: Sequence[AddedToken]):
        self._ids = [token.id for token in tokens]
        self._firsts = sorted({token.text[0] for token in tokens})
        self._finder = tokenizers.Tokenizer(models.BPE(vocab={}, merges=[], cache_capacity=0))
        self._finder.add_tokens([_library_token(token) for token in tokens])

    def split(self, text: str) -> list[int | str]:
        """The text as ids of added tokens and the strings between them, none of them empty."""
        if not any(first in text for first in self._firsts):
            return [text] if text else []
        found = self._finder.encode_batch([text], add_special_tokens=False)[0]
        parts: list[int | str] = []
        last = 0
        for index, (start, end) in zip(found.ids, found.offsets, strict=True):
            if start < last:
                continue  # in the white space that the token before has swallowed
            if start > last:
                parts.append(text[last:start])
            parts.append(self._ids[index])
            last = end
        if last < len(text):
            parts.append(text[last:])
        return parts


def _library_token(token: AddedToken) -> tokenizers.AddedToken:
    flags = {"lstrip": token.lstrip, "rstrip": token.rstrip, "single_word": token.single_word}
    return tokenizers.AddedToken(token.text, normalized=False, **flags)
