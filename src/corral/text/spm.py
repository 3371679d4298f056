"""SentencePiece-style BPE, by the `sentencepiece` library fed with a model that is written here.

The library reads a serialised ModelProto. Field numbers are those of sentencepiece_model.proto
(https://github.com/google/sentencepiece/blob/master/src/sentencepiece_model.proto):
ModelProto: pieces 1, trainer_spec 2, normalizer_spec 3. SentencePiece: piece 1, score 2 (float), type 3.
TrainerSpec: model_type 3 (2 = BPE), byte_fallback 35. NormalizerSpec: name 1, add_dummy_prefix 3,
remove_extra_whitespaces 4, escape_whitespaces 5. Its piece types are those of vocabulary.py.
"""

import struct
from array import array
from collections.abc import Callable, Mapping
from itertools import chain
from typing import Any

import sentencepiece

from corral.errors import CorruptModel
from corral.text.vocabulary import TokenType, Vocabulary, read_flag, read_scores

__all__ = ["SentencePieceBPE"]

SPACE = "▁".encode()
BYTE_TOKENS = {b"<0x%02X>" % byte: bytes([byte]) for byte in range(256)}
BPE = 2
# Whether a space goes before a text that follows a control token or, `first`, nothing. In a tokenizer.json a
# normaliser "Prepend" does it always, a pre-tokeniser "Metaspace" unless a space is there.
SPACE_RULES: dict[str, Callable[[str, bool], bool]] = {
    "never": lambda text, first: False,
    "always": lambda text, first: True,
    "unless there": lambda text, first: not text.startswith((" ", "▁")),
    "first, unless there": lambda text, first: first and not text.startswith((" ", "▁")),
}
# Text meets only these types; special tokens are split off before, and must not be built by merging.
MERGED: dict[int, int] = {kind: kind for kind in (TokenType.NORMAL, TokenType.UNUSED, TokenType.BYTE)}
SPACED = (TokenType.NORMAL, TokenType.UNUSED)  # in the texts of these ▁ stands for a space


class SentencePieceBPE:
    """Merges the pair of pieces with the best score anywhere in the text; what is left becomes bytes."""

    add_bos = True

    def __init__(self, fields: Mapping[str, Any], vocabulary: Vocabulary, texts: list[bytes]):
        prefix = "always" if read_flag(fields, "add_space_prefix", True) else "never"
        self._needs_space = SPACE_RULES[fields.get("space_rule", prefix)]
        self._vocabulary, self._spaced, merged = vocabulary, frozenset(SPACED), MERGED
        if fields.get("merge_user_defined"):  # the text that spells one becomes it, and so do merges
            self._spaced |= {TokenType.USER_DEFINED}
            merged = {**MERGED, TokenType.USER_DEFINED: TokenType.NORMAL}
        scores = array("f", bytes(4 * len(vocabulary)))
        if "scores" in fields:
            scores = read_scores(fields, len(vocabulary))
        try:
            self._encoder = sentencepiece.SentencePieceProcessor(
                model_proto=_serialise(vocabulary, texts, scores, merged)
            )
        except RuntimeError as error:
            raise CorruptModel(f"the model's vocabulary is not usable: {error}") from None

    def prefixed(self, text: str, first: bool) -> str:
        """The text, with a space before it where the vocabulary wants one; `first`: nothing is before it."""
        return " " + text if text and self._needs_space(text, first) else text

    def encode(self, text: str) -> list[int]:
        """Token ids of text without special tokens."""
        ids: list[int] = self._encoder.encode(text, out_type=int)
        return ids

    def token_bytes(self, token: int) -> bytes:
        """The bytes that a token stands for."""
        raw, kind = self._vocabulary.raw(token), self._vocabulary.types[token]
        if kind == TokenType.BYTE:
            return BYTE_TOKENS.get(raw, raw)
        return raw.replace(SPACE, b" ") if kind in self._spaced else raw


def _serialise(
    vocabulary: Vocabulary,
    texts: list[bytes],
    scores: "array[float]",
    merged: Mapping[int, int],
) -> bytes:
    """The vocabulary as a ModelProto; types that are not in `merged` are control tokens there."""
    others = bytes(merged.get(kind, TokenType.CONTROL) for kind in range(256))
    types = bytearray(vocabulary.types.translate(others))
    bytes_known = {vocabulary.raw(token) for token in vocabulary.of_type(TokenType.BYTE)}
    fallback = bytes_known >= BYTE_TOKENS.keys()
    for token in vocabulary.of_type(TokenType.BYTE):
        if not fallback or vocabulary.raw(token) not in BYTE_TOKENS:
            types[token] = TokenType.CONTROL
    # The library wants exactly one unknown token. With byte fallback it is never used.
    unknown = vocabulary.unknown_id
    if unknown is None or types[unknown] != TokenType.CONTROL:
        unknown = types.find(TokenType.CONTROL)
    if unknown < 0:
        raise CorruptModel("the model's vocabulary has no token for unknown text")
    types[unknown] = TokenType.UNKNOWN
    out = bytearray(_pieces(texts, types, scores))
    out += _field(2, bytes((3 << 3, BPE)) + _varint(35 << 3) + bytes((fallback,)))
    out += _field(3, _field(1, b"identity") + bytes((3 << 3, 0, 4 << 3, 0, 5 << 3, 1)))
    return bytes(out)


def _pieces(texts: list[bytes], types: bytearray, scores: "array[float]") -> bytes:
    """All SentencePiece fields. Every step goes over all tokens at once: there are a quarter of a million."""
    count, lengths = len(texts), [*map(len, texts)]
    heads = {n: b"\x0a" + _varint(n + len(_varint(n)) + 8) + b"\x0a" + _varint(n) for n in set(lengths)}
    packed = scores.tobytes()
    tails = bytearray(7 * count)  # a score of four bytes and a type, each behind its field's number
    tails[0::7], tails[5::7], tails[6::7] = b"\x15" * count, b"\x18" * count, types
    for i in range(4):
        tails[1 + i :: 7] = packed[i::4]
    ends = chain.from_iterable(struct.iter_unpack("7s", tails))
    parts = zip(map(heads.__getitem__, lengths), texts, ends, strict=True)
    return b"".join(chain.from_iterable(parts))


def _varint(number: int) -> bytes:
    if number < 128:
        return bytes((number,))
    return bytes((number & 127 | 128,)) + _varint(number >> 7)


def _field(number: int, body: bytes) -> bytes:
    """A length-delimited field."""
    return _varint(number << 3 | 2) + _varint(len(body)) + body
