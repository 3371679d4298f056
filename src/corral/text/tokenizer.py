"""Text to token ids and back."""

import functools
import importlib
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

from corral.errors import InvalidRequest, UnsupportedModel
from corral.text.added import AddedToken, AddedTokens
from corral.text.vocabulary import ADDED_FLAGS, TokenType, Vocabulary, read_flag, read_ids, read_vocabulary
from corral.weights.source import TextAssets

__all__ = ["Tokenizer", "check_text", "load_tokenizer"]


class Scheme(Protocol):
    """How plain text becomes ids: one class a value of the vocabulary's field `model`."""

    @property
    def add_bos(self) -> bool: ...
    def prefixed(self, text: str, first: bool) -> str: ...
    def encode(self, text: str) -> list[int]: ...
    def token_bytes(self, token: int) -> bytes: ...


class Tokenizer:
    """A model's tokeniser. Its methods may be called from several threads."""

    def __init__(self, fields: Mapping[str, Any], vocabulary: Vocabulary, scheme: Scheme):
        self.vocab_size = len(vocabulary)
        self.bos_id, self.eos_id = vocabulary.bos_id, vocabulary.eos_id
        self.eos_ids = vocabulary.end_ids
        self.names = vocabulary.names
        self.add_bos = read_flag(fields, "add_bos_token", scheme.add_bos) and self.bos_id is not None
        self._vocabulary, self._scheme = vocabulary, scheme
        self._pieces: dict[int, bytes] = {}
        self._special = vocabulary.of_type(TokenType.CONTROL, TokenType.UNKNOWN)
        self._plain = vocabulary.of_type(TokenType.USER_DEFINED)
        self._flagged = {flag: read_ids(fields, f"{flag}_ids") for flag in ADDED_FLAGS}

    @functools.cached_property
    def _plain_finder(self) -> AddedTokens:
        return self.finder(self._plain)

    @functools.cached_property
    def _special_finder(self) -> AddedTokens:
        return self.finder(sorted(self._plain + self._special))

    def encode(self, text: str, *, special: bool, add_bos: bool) -> list[int]:
        """The text's token ids.

        With `special`, text that spells a control token becomes it; without, it stays plain text.
        User-defined tokens are found either way, as in llama.cpp.
        """
        parts = (self._special_finder if special else self._plain_finder).split(check_text(text))
        return self._encode_parts(parts, add_bos)

    def encode_parts(self, parts: Iterable[int | str], *, add_bos: bool) -> list[int]:
        """The ids of plain text between control tokens that are given by id."""
        split: list[int | str] = []
        for part in parts:
            if isinstance(part, int):
                if part in self._flagged["lstrip"] and split and isinstance(split[-1], str):
                    split[-1] = split[-1].rstrip()
                split.append(part)
                continue
            if split and split[-1] in self._flagged["rstrip"]:
                part = part.lstrip()
            split += self._plain_finder.split(check_text(part))
        return self._encode_parts(split, add_bos)

    def split_special(self, text: str) -> list[int | str]:
        """The text as ids of control tokens (not of user-defined ones) and the strings between them."""
        parts: list[int | str] = []
        for part in self._special_finder.split(check_text(text)):
            if isinstance(part, int) and not self.is_special(part):
                part = self.token_text(part)
            if isinstance(part, str) and parts and isinstance(parts[-1], str):
                parts[-1] += part
            else:
                parts.append(part)
        return parts

    def token_bytes(self, token: int) -> bytes:
        """The bytes that a token stands for; none for an id beyond the vocabulary (padding of the matrix)."""
        piece = self._pieces.get(token)
        if piece is None:
            piece = self._scheme.token_bytes(token) if 0 <= token < self.vocab_size else b""
            self._pieces[token] = piece
        return piece

    def token_text(self, token: int) -> str:
        """The token's name in the vocabulary."""
        return self._vocabulary.text(token)

    def is_special(self, token: int) -> bool:
        """Whether the token is a control or unknown token: not part of a reply's text."""
        in_range = 0 <= token < self.vocab_size
        return in_range and self._vocabulary.types[token] in (TokenType.CONTROL, TokenType.UNKNOWN)

    @property
    def special_ids(self) -> list[int]:
        """All control and unknown tokens."""
        return self._special

    def finder(self, tokens: Iterable[int]) -> AddedTokens:
        """Splits text on these tokens."""
        flags = {token: {f: token in ids for f, ids in self._flagged.items()} for token in tokens}
        return AddedTokens([AddedToken(token, self.token_text(token), **flags[token]) for token in flags])

    def _encode_parts(self, parts: list[int | str], add_bos: bool) -> list[int]:
        ids = [self.bos_id] if add_bos and self.bos_id is not None else []
        encode, prefixed = self._scheme.encode, self._scheme.prefixed
        after_text = False
        for number, part in enumerate(parts):
            if isinstance(part, str):
                ids += encode(part if after_text else prefixed(part, number == 0))
                after_text = True
            else:
                ids.append(part)
                after_text = False
        return ids


def check_text(text: str) -> str:
    """The text, or InvalidRequest if it cannot be UTF-8."""
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InvalidRequest(
                f"the text is not valid Unicode: lone surrogate at character {error.start}"
            ) from None
    return text


def load_tokenizer(assets: TextAssets) -> Tokenizer:
    """The tokeniser that a model's files describe; keeps nothing of `assets`."""
    fields = assets.vocabulary
    if assets.tokenizer_json:
        from corral.text.tokenizer_json import read_definition  # here: many models have no such file

        fields = read_definition(assets)
    kind = fields.get("model")
    location = SCHEMES.get(kind) if isinstance(kind, str) else None
    if location is None:
        raise UnsupportedModel(f"tokeniser '{kind}' is not supported; supported are {', '.join(SCHEMES)}")
    vocabulary, texts = read_vocabulary(fields)
    module, name = location.split(":")  # imported when wanted: each brings a library of its own
    scheme: Scheme = getattr(importlib.import_module(module), name)(fields, vocabulary, texts)
    return Tokenizer(fields, vocabulary, scheme)


SCHEMES = {
    "gpt2": "corral.text.bpe:ByteLevelBPE",
    "llama": "corral.text.spm:SentencePieceBPE",
    "tokenizer.json": "corral.text.tokenizer_json:LibraryBPE",
}
