"""Byte-level BPE (GPT-2's scheme), by the `tokenizers` library."""

from collections.abc import Mapping
from typing import Any

import tokenizers
from tokenizers import models, pre_tokenizers

from corral.errors import CorruptModel, UnsupportedModel
from corral.text.pretokenizers import PRETOKENIZERS, Pretokenizer
from corral.text.vocabulary import TokenType, Vocabulary, decode_all, read_texts

__all__ = ["ByteLevelBPE", "byte_level_bytes"]


def _byte_characters() -> dict[str, int]:
    """The byte that each printable character stands for in the vocabulary."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + i): byte for i, byte in enumerate(hidden)}


BYTE_OF = _byte_characters()


class ByteLevelBPE:
    """Merges pairs of byte-level pieces inside the words that the model's pre-tokeniser cuts."""

    def __init__(self, fields: Mapping[str, Any], vocabulary: Vocabulary, texts: list[bytes]):
        kind = fields.get("pre", "default")
        words = PRETOKENIZERS.get(kind) if isinstance(kind, str) else None
        if words is None:
            raise UnsupportedModel(
                f"pre-tokeniser '{kind}' is not supported; supported are {', '.join(sorted(PRETOKENIZERS))}"
            )
        self.add_bos = words.add_bos
        self._vocabulary = vocabulary
        self._encoder = _build(fields, decode_all(texts), words)

    def prefixed(self, text: str, first: bool) -> str:
        """The text: no space is put before it."""
        return text

    def encode(self, text: str) -> list[int]:
        """Token ids of text without special tokens. Releases the interpreter's lock."""
        # encode() would keep the lock, and offsets that nobody reads.
        ids: list[int] = self._encoder.encode_batch_fast([text], add_special_tokens=False)[0].ids
        return ids

    def token_bytes(self, token: int) -> bytes:
        """The bytes that a token stands for."""
        if self._vocabulary.types[token] != TokenType.NORMAL:
            return self._vocabulary.raw(token)
        return byte_level_bytes(self._vocabulary.text(token))


def byte_level_bytes(text: str) -> bytes:
    """The bytes that a piece stands for; its own UTF-8 if it has other characters."""
    try:
        return bytes([BYTE_OF[character] for character in text])
    except KeyError:
        return text.encode()


def _build(fields: Mapping[str, Any], tokens: list[str], words: Pretokenizer) -> tokenizers.Tokenizer:
    # A pair that is listed twice keeps its first rank, as in llama.cpp.
    merges = _split_merges(decode_all([*dict.fromkeys(read_texts(fields, "merges"))]))
    vocab = dict(zip(tokens, range(len(tokens)), strict=True))
    try:
        model = models.BPE(vocab=vocab, merges=merges, ignore_merges=words.ignore_merges)
    except Exception as error:  # the library has no error class of its own
        raise CorruptModel(f"the tokeniser's merges do not fit the vocabulary: {error}") from None
    encoder = tokenizers.Tokenizer(model)
    splits = [pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated") for pattern in words.patterns]
    last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    encoder.pre_tokenizer = pre_tokenizers.Sequence([*splits, last])
    return encoder


def _split_merges(lines: list[str]) -> list[tuple[str, str]]:
    pairs = [(left, right) for left, _, right in [line.partition(" ") for line in lines]]
    return pairs if all(map(all, pairs)) else [_split_merge(line) for line in lines]


def _split_merge(line: str) -> tuple[str, str]:
    """One pair, the first character of which may be a space."""
    cut = line.find(" ", 1)
    if cut < 0 or cut == len(line) - 1:
        raise CorruptModel(f"the tokeniser's merges have an entry that is not a pair: {line!r:.80}")
    return line[:cut], line[cut + 1 :]
