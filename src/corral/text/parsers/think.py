"""Replies that begin with `<think>…</think>`: of Qwen 3, QwQ, SmolLM 3, DeepSeek R1 and what it has taught.

The tags are tokens in some vocabularies, control tokens or not, and plain text in others. Some templates end
with the opening tag, so that the reply begins inside. White space next to the tags is theirs, as in Ollama.
"""

from collections.abc import Sequence

from corral.text.messages import Text, Thought
from corral.text.parsers.parser import Piece, Said
from corral.text.tokenizer import Tokenizer

OPEN, CLOSE = "<think>", "</think>"
_TAIL = 16  # tokens of a prompt that hold the opening tag and white space, however they are cut


class ThinkParser:
    """Tells thoughts from what follows them. A tag further on is text like any other."""

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int]):
        tags = {tag: tokenizer.split_special(tag) for tag in (OPEN, CLOSE)}
        self._tags = {ids[0]: tag for tag, ids in tags.items() if len(ids) == 1 and isinstance(ids[0], int)}
        self.markers = frozenset(self._tags)
        tail = b"".join(map(tokenizer.token_bytes, prompt[-_TAIL:])).decode("utf-8", "replace")
        self._opened = tail.rstrip().endswith(OPEN)
        self._read = self._read_beginning
        self._kept = ""
        self._after_tag = self._opened

    def push(self, pieces: Sequence[Piece]) -> list[Said]:
        """What these pieces say; what may belong to a tag is kept back."""
        self._kept += "".join(self._tags[piece] if isinstance(piece, int) else piece for piece in pieces)
        return self._read()

    def flush(self) -> list[Said]:
        """What was kept back: it has not become a tag."""
        kept, self._kept = self._kept, ""
        if self._after_tag:
            kept = kept.lstrip()
        thinking = self._read == self._read_thought or (self._opened and self._read == self._read_beginning)
        return [Thought(kept) if thinking else Text(kept)] if kept else []

    def _read_beginning(self) -> list[Said]:
        start = self._kept.lstrip()
        if len(start) < len(OPEN) and OPEN.startswith(start):
            return []  # it may still become the tag
        if start.startswith(OPEN):
            self._opened, self._after_tag = True, True
            self._kept = start[len(OPEN) :]
        self._read = self._read_thought if self._opened else self._read_text
        return self._read()

    def _read_thought(self) -> list[Said]:
        self._drop_space_after_tag()
        thought, tag, rest = self._kept.partition(CLOSE)
        if tag:
            self._kept, self._after_tag = rest, True
            self._read = self._read_text
            thought = thought.rstrip()
            return [*([Thought(thought)] if thought else []), *self._read()]
        certain = thought[: len(thought) - _begun(CLOSE, thought)].rstrip()
        self._kept = thought[len(certain) :]
        return [Thought(certain)] if certain else []

    def _read_text(self) -> list[Said]:
        self._drop_space_after_tag()
        text, self._kept = self._kept, ""
        return [Text(text)] if text else []

    def _drop_space_after_tag(self) -> None:
        if self._after_tag:
            self._kept = self._kept.lstrip()
            self._after_tag = not self._kept


def _begun(tag: str, text: str) -> int:
    """Characters at the end of the text with which the tag may begin."""
    return next((n for n in range(min(len(tag) - 1, len(text)), 0, -1) if tag.startswith(text[-n:])), 0)
