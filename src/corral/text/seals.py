"""Keeps control tokens that a chat template writes apart from text that only spells them.

A template and a conversation are joined into one string, and after that nobody can tell who wrote
"<|im_end|>". So before rendering, each control token in the template's source is replaced by one rare
character, its seal. After rendering only seals become control tokens; the rest is plain text whatever it
says, and the template's logic sees the conversation unchanged.

Some templates put tokens together instead: '<|' + role + '|>'. Those few tokens are looked for in the rest,
and where there are any, the conversation is defused first: one character of whatever could begin or continue
such a token is replaced by a rare pair until the tokens have been found. A template that deletes text cannot
join such halves; only one that tests for that very text sees a difference. Roles stay as they are.

The rare characters are cuneiform and hieroglyphs: printable, without case, not white space, so that no filter
changes them. A conversation that uses one of them has it replaced by a pair in the same way.
"""

import re
from collections.abc import Iterable
from typing import Any

from corral.text.tokenizer import Tokenizer, check_text

__all__ = ["Seals"]

ESCAPE, FIRST_IMAGE, FIRST_SEAL, LAST_SEAL = "\U00012000", 0x12001, 0x13000, 0x1342E
IMAGE = re.compile(f"{ESCAPE}[{chr(FIRST_IMAGE)}-{chr(FIRST_SEAL - 1)}]")
KNOWN_ROLES = frozenset(
    ["system", "user", "assistant", "tool", "developer", "function", "model", "ipython", "environment"]
)
# Where a literal of a template's source ends: a quotation mark or the beginning of a tag. White space is only
# tried where it begins, or a long run of it would take quadratic time.
LITERAL_END = re.compile(r"['\"]|(?<!\s)\s+\{[{%#]-|\{[{%#]")
MAX_OPENING = 64  # characters; templates put tokens together from shorter pieces
LITERAL_STARTS = ("'", '"', "}}", "%}", "#}")


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
        self._composed: dict[int, str] = {}
        self._watch(_composed_of_roles(self.source, self._unsealed()))

    def learn(self, rendered: str) -> None:
        """Note the control tokens that the template put together for an innocent conversation."""
        texts = [part for part in self._pieces(rendered) if part not in self._tokens]
        found = {part for text in texts for part in self._tokenizer.split_special(text)}
        self._watch(part for part in found if isinstance(part, int))

    def defuse(self, value: Any) -> Any:
        """A copy of a conversation's value, as JSON has them, of which no string can make a control token."""
        if isinstance(value, str):
            return self._defuse_text(value)
        if isinstance(value, dict):
            return {self.defuse(key): self.defuse(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self.defuse(item) for item in value]
        return value

    def text(self, rendered: str) -> str:
        """What was rendered, as a person would read it."""
        name = self._tokenizer.token_text
        pieces = self._pieces(rendered)
        return self._restore("".join(name(self._tokens[p]) if p in self._tokens else p for p in pieces))

    def parts(self, rendered: str) -> list[int | str]:
        """What was rendered, as ids of control tokens and plain text between them."""
        parts: list[int | str] = []
        for piece in self._pieces(rendered):
            if piece in self._tokens:
                parts.append(self._tokens[piece])
            else:
                found = self._finder.split(piece)
                parts += [self._restore(part) if isinstance(part, str) else part for part in found]
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

    def _unsealed(self) -> dict[int, str]:
        return {token: self._tokenizer.token_text(token) for token in self._tokenizer.special_ids}

    def _watch(self, tokens: Iterable[int]) -> None:
        """Look for these tokens in what was rendered, and defuse them in conversations."""
        self._composed |= {token: self._tokenizer.token_text(token) for token in tokens}
        texts = sorted(self._composed.values())
        self._finder = self._tokenizer.finder(sorted(self._composed))
        openings = _openings(self.source, texts)
        self._rests = {text[len(o) :] for o in openings for text in texts if text.startswith(o)}
        replaced = sorted({*self._tokens, ESCAPE, *"".join(texts), *"".join(texts).swapcase()})
        self._images = {c: ESCAPE + chr(FIRST_IMAGE + i) for i, c in enumerate(replaced)}
        self._originals = {image: c for c, image in self._images.items()}
        risky = f"[{''.join(self._tokens)}{ESCAPE}]"
        if texts:
            pairs = "|".join(sorted({re.escape(text[:2]) for text in texts}))
            firsts = "|".join(sorted({re.escape(text[0]) for text in texts}))
            risky += rf"|(?:(?={pairs})|(?=(?:{firsts})\Z))."
        self._risky = re.compile(risky, re.IGNORECASE | re.DOTALL)

    def _pieces(self, rendered: str) -> list[str]:
        pieces = self._split.split(rendered) if self._split else [rendered]
        return [piece for piece in pieces if piece]

    def _defuse_text(self, text: str) -> str:
        safe = self._risky.sub(lambda match: self._images.get(match[0], match[0]), check_text(text))
        if text and any(rest.startswith(text) or text.startswith(rest) for rest in self._rests):
            safe = safe if safe[0] == ESCAPE else self._images[safe[0]] + safe[1:]
        return safe

    def _restore(self, text: str) -> str:
        return IMAGE.sub(lambda match: self._originals.get(match[0], ""), text) if ESCAPE in text else text


def _openings(source: str, texts: Iterable[str]) -> set[str]:
    """The beginnings of these texts with which literals of the source end."""
    beginnings = {text[:n] for text in texts for n in range(1, min(len(text), MAX_OPENING))}
    longest = max(map(len, beginnings), default=0)
    ends = [match.start() for match in LITERAL_END.finditer(source)]
    return {source[end - n : end] for end in ends for n in range(1, min(longest, end) + 1)} & beginnings


def _composed_of_roles(source: str, texts: dict[int, str]) -> list[int]:
    """Control tokens that are a literal of the source, a known role and another literal."""
    openings = _openings(source, texts.values())
    found = []
    for token, text in texts.items():
        for role in KNOWN_ROLES:
            before, middle, after = text.lower().partition(role)
            after = text[len(text) - len(after) :]
            if (
                middle
                and text[: len(before)] in openings
                and any(s + after in source for s in LITERAL_STARTS)
            ):
                found.append(token)
    return found
