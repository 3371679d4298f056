"""Keeps control tokens that a chat template writes apart from text that only spells them.

A template and a conversation are joined into one string, and after that nobody can tell who wrote
"<|im_end|>". So before rendering, each control token in the template's source is replaced by one private-use
character, its seal. After rendering only seals become control tokens; the rest is plain text whatever it
says, and the template's logic sees the conversation unchanged.

Some templates put tokens together ('<|' + role + '|>'), and there the rest must be searched too. For those (a
string of the source ends in the beginning of a control token) the conversation's strings are also defused:
one character of whatever could begin or continue a control token is replaced by a private-use pair until the
tokens have been found. A filter that deletes text cannot join such halves; only a template that tests for
that very text sees a difference. Known roles stay as they are, or nothing could be put together.
"""

import re
from collections.abc import Iterable, Sequence
from typing import Any

from corral.text.tokenizer import Tokenizer

__all__ = ["Seals"]

FIRST_SEAL, FIRST_IMAGE, ESCAPE = 0x100000, 0x10F000, "\U0010fffd"
KNOWN_ROLES = frozenset(
    ["system", "user", "assistant", "tool", "developer", "function", "model", "ipython", "environment"]
)
# Where a literal of a template's source ends: a quotation mark or the beginning of a tag.
LITERAL_END = re.compile(r"['\"]|\s*\{[{%#]-|\{[{%#]")
CODED_CHARACTER = re.compile(r"\\[xuUN0-7]")


class Seals:
    """The seals of one template."""

    def __init__(self, tokenizer: Tokenizer, source: str):
        self._tokenizer = tokenizer
        self._tokens: dict[str, int] = {}  # by seal
        self._seals: dict[int, str] = {}  # by token
        self.source = "".join(
            part if isinstance(part, str) else self._seal(part) for part in tokenizer.split_special(source)
        )
        self.names = {name: self._seal_name(text) for name, text in tokenizer.names.items()}
        self._texts = [tokenizer.token_text(token) for token in tokenizer.special_ids]
        openings = _openings(self.source, self._texts)
        self._composing = bool(openings)
        self._rests = _rests(openings, self._texts)
        risky = self._risky_pattern()
        self._images = {c: ESCAPE + chr(FIRST_IMAGE + i) for i, c in enumerate(self._replaced())}
        self._originals = {image: c for c, image in self._images.items()}
        self._risky = re.compile(risky, re.IGNORECASE | re.DOTALL)
        self._image = re.compile(f"{ESCAPE}[{chr(FIRST_IMAGE)}-{chr(ord(ESCAPE) - 1)}]")
        self._seal_split = re.compile(f"([{''.join(self._tokens)}])") if self._tokens else None

    def defuse(self, value: Any, role: bool = False) -> Any:
        """A copy of a conversation's value in which no string can make a control token."""
        if isinstance(value, str):
            return value if role and value in KNOWN_ROLES else self._defuse_text(value)
        if isinstance(value, dict):
            return {self.defuse(key): self.defuse(item, key == "role") for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self.defuse(item) for item in value]
        return value

    def text(self, rendered: str) -> str:
        """What was rendered, as a person would read it."""
        return self._restore("".join(self._open(part) for part in self._split(rendered)))

    def parts(self, rendered: str) -> list[int | str]:
        """What was rendered, as ids of control tokens and plain text between them."""
        parts: list[int | str] = []
        for part in self._split(rendered):
            if part in self._tokens:
                parts.append(self._tokens[part])
            elif self._composing:
                found = self._tokenizer.split_special(part)
                parts += [self._restore(p) if isinstance(p, str) else p for p in found]
            else:
                parts.append(self._restore(part))
        return parts

    def _seal(self, token: int) -> str:
        """The token's seal; its own text if that could be a part of the template's language."""
        text = self._tokenizer.token_text(token)
        if len(text) < 3 or text.replace("_", "").isalnum() or "{" in text or "}" in text:
            return text
        if token not in self._seals:
            seal = chr(FIRST_SEAL + len(self._tokens))
            self._seals[token], self._tokens[seal] = seal, token
        return self._seals[token]

    def _seal_name(self, text: str) -> str:
        parts = self._tokenizer.split_special(text)
        return self._seal(parts[0]) if len(parts) == 1 and isinstance(parts[0], int) else text

    def _open(self, part: str) -> str:
        return self._tokenizer.token_text(self._tokens[part]) if part in self._tokens else part

    def _split(self, rendered: str) -> list[str]:
        pieces = self._seal_split.split(rendered) if self._seal_split else [rendered]
        return [piece for piece in pieces if piece]

    def _replaced(self) -> list[str]:
        """Every character that may have to be replaced in a conversation."""
        letters = {c for text in self._texts for c in (text + text.swapcase())} if self._composing else set()
        return sorted({*self._tokens, ESCAPE, *letters})

    def _risky_pattern(self) -> str:
        """What to replace: private characters; in composing templates the first of two that begin a token."""
        private = f"[{''.join(self._tokens)}{ESCAPE}]"
        if not self._composing:
            return private
        pairs = "|".join(sorted({re.escape(text[:2]) for text in self._texts}))
        firsts = "".join(sorted({re.escape(text[0]) for text in self._texts}))
        return f"{private}|(?:(?={pairs})|(?=[{firsts}]\\Z))."

    def _defuse_text(self, text: str) -> str:
        safe = self._risky.sub(lambda match: self._images.get(match[0], match[0]), text)
        continues = (
            any(rest.startswith(text) or text.startswith(rest) for rest in self._rests) if text else False
        )
        if continues and safe[0] != ESCAPE:
            return self._images[safe[0]] + safe[1:]
        return safe

    def _restore(self, text: str) -> str:
        return (
            self._image.sub(lambda match: self._originals.get(match[0], ""), text) if ESCAPE in text else text
        )


def _openings(source: str, texts: Sequence[str]) -> set[str]:
    """The beginnings of control tokens with which literals of the source end."""
    beginnings = {text[:n] for text in texts for n in range(1, len(text))}
    longest = max(map(len, beginnings), default=0)
    found = {
        source[match.start() - n : match.start()]
        for match in LITERAL_END.finditer(source)
        for n in range(1, min(longest, match.start()) + 1)
    }
    # A coded character may hide the rest of a token.
    return found & beginnings or (beginnings if CODED_CHARACTER.search(source) else set())


def _rests(openings: Iterable[str], texts: Sequence[str]) -> list[str]:
    """What would complete the openings to control tokens."""
    return sorted(
        {text[len(opening) :] for opening in openings for text in texts if text.startswith(opening)} - {""}
    )
