"""SentencePiece-style BPE, by the `sentencepiece` library fed with a model that is written here.

The library reads a serialised ModelProto. Field numbers are those of sentencepiece_model.proto
(https://github.com/google/sentencepiece/blob/master/src/sentencepiece_model.proto):
ModelProto: pieces 1, trainer_spec 2, normalizer_spec 3. SentencePiece: piece 1, score 2 (float), type 3.
TrainerSpec: model_type 3 (2 = BPE), byte_fallback 35. NormalizerSpec: name 1, add_dummy_prefix 3,
remove_extra_whitespaces 4, escape_whitespaces 5. Its piece types are GGUF's token types.
"""

import struct
from array import array
from collections.abc import Mapping
from itertools import chain
from typing import Any

import sentencepiece

from corral.errors import CorruptModel
from corral.text.vocabulary import PREFIX, TokenType, Vocabulary, read_flag, read_scores

__all__ = ["SentencePieceBPE"]

SPACE = "▁".encode()
BYTE_TOKENS = {b"<0x%02X>" % byte: bytes([byte]) for byte in range(256)}
BPE = 2
# Text meets only these types; special tokens are split off before, and must not be built by merging.
MERGED = (TokenType.NORMAL, TokenType.UNUSED, TokenType.BYTE)


class SentencePieceBPE:
    """Merges the pair of pieces with the best score anywhere in the text; what is left becomes bytes."""

    add_bos = True

    def __init__(self, metadata: Mapping[str, Any], vocabulary: Vocabulary, texts: list[bytes]):
        self.add_space_prefix = read_flag(metadata, "add_space_prefix", True)
        self._vocabulary = vocabulary
        scores = array("f", bytes(4 * len(vocabulary)))
        if PREFIX + "scores" in metadata:
            scores = read_scores(metadata, len(vocabulary))
        try:
            self._encoder = sentencepiece.SentencePieceProcessor(
                model_proto=_serialise(vocabulary, texts, scores)
            )
        except RuntimeError as error:
            raise CorruptModel(f"the model's vocabulary is not usable: {error}") from None

    def encode(self, text: str) -> list[int]:
        """Token ids of text without special tokens."""
        ids: list[int] = self._encoder.encode(text, out_type=int)
        return ids

    def token_bytes(self, token: int) -> bytes:
        """The bytes that a token stands for."""
        raw, kind = self._vocabulary.raw(token), self._vocabulary.types[token]
        if kind == TokenType.BYTE:
            return BYTE_TOKENS.get(raw, raw)
        return raw.replace(SPACE, b" ") if kind in (TokenType.NORMAL, TokenType.UNUSED) else raw


def _serialise(vocabulary: Vocabulary, texts: list[bytes], scores: "array[float]") -> bytes:
    """The vocabulary as a ModelProto."""
    others = bytes(kind if kind in MERGED else TokenType.CONTROL for kind in range(256))
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
