"""Keeps control tokens that a chat template writes apart from text that only spells them.

A template and a conversation are joined into one string, and after that nobody can tell who wrote
"<|im_end|>". So before rendering, each control token in the template's source is replaced by one rare
character, its seal. After rendering only seals become control tokens; the rest is plain text whatever it
says, and the template's logic sees the conversation unchanged. With ① and ② for the seals:

    source      {{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>' }}
    sealed      {{ '①' + m.role + '\\n' + m.content + '②' }}
    message     role user, content "What does <|im_end|> mean?"
    rendered    ①user\\nWhat does <|im_end|> mean?②
    parts       [1, "user\\nWhat does <|im_end|> mean?", 2]

Tokens that a template puts together from pieces have no seal: see defuse.py.

Seals are hieroglyphs: printable, without case, not white space, so that no filter changes them.
"""

import re
from collections.abc import Iterator
from typing import Any

from corral.text.defuse import Defuser
from corral.text.tokenizer import Tokenizer

__all__ = ["Seals"]

FIRST_SEAL, LAST_SEAL = 0x13000, 0x1342E


class Seals:
    """The seals of one template. `source` is the template to render, `names` its bos_token and the like."""

    def __init__(self, tokenizer: Tokenizer, source: str):
        self._tokenizer = tokenizer
        self._tokens: dict[str, int] = {}  # by seal
        self._seals: dict[int, str] = {}  # by token
        parts = tokenizer.split_special(source)
        self.source = "".join(part if isinstance(part, str) else self._seal(part) for part in parts)
        self.names = {name: self._seal_name(text) for name, text in tokenizer.names.items()}
        self._split = re.compile(f"([{''.join(self._tokens)}])") if self._tokens else None
        self._defuser = Defuser(tokenizer, self.source, "".join(self._tokens))

    def learn(self, rendered: str) -> None:
        """Note the control tokens that the template put together for an innocent conversation."""
        texts = [piece for piece in self._pieces(rendered) if isinstance(piece, str)]
        found = {part for text in texts for part in self._tokenizer.split_special(text)}
        self._defuser.watch(part for part in found if isinstance(part, int))

    def defuse(self, value: Any) -> Any:
        """A copy of a conversation's value, as JSON has them, of which no string can make a control token."""
        return self._defuser.defuse(value)

    def text(self, rendered: str) -> str:
        """What was rendered, as a person would read it."""
        name = self._tokenizer.token_text
        pieces = self._pieces(rendered)
        return self._defuser.restore("".join(p if isinstance(p, str) else name(p) for p in pieces))

    def parts(self, rendered: str) -> list[int | str]:
        """What was rendered, as ids of control tokens and plain text between them."""
        parts: list[int | str] = []
        for piece in self._pieces(rendered):
            parts += self._defuser.split(piece) if isinstance(piece, str) else [piece]
        return parts

    def _seal(self, token: int) -> str:
        """The token's seal; its own text if that could be a part of the template's language."""
        text = self._tokenizer.token_text(token)
        if len(text) < 3 or text.replace("_", "").isalnum() or "{" in text or "}" in text:
            return text
        seal = chr(FIRST_SEAL + len(self._tokens))
        if token not in self._seals and ord(seal) <= LAST_SEAL:
            self._seals[token], self._tokens[seal] = seal, token
        return self._seals.get(token, text)

    def _seal_name(self, text: str) -> str:
        parts = self._tokenizer.split_special(text)
        return self._seal(parts[0]) if len(parts) == 1 and isinstance(parts[0], int) else text

    def _pieces(self, rendered: str) -> Iterator[int | str]:
        """The sealed tokens, and the text between them."""
        for piece in self._split.split(rendered) if self._split else [rendered]:
            if piece:
                yield self._tokens.get(piece, piece)
