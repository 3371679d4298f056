"""A model's tokens as its GGUF metadata lists them, checked, and what each of them is for."""

import enum
import math
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, compress
from typing import Any

from corral.errors import CorruptModel, UnsupportedModel
from corral.weights.cursor import StringArray

__all__ = ["TokenType", "Vocabulary", "read_flag", "read_scores", "read_texts", "read_vocabulary"]

PREFIX = "tokenizer.ggml."
MAX_TOKENS = 1 << 21


class TokenType(enum.IntEnum):
    """What a token is, by GGUF's numbers."""

    UNDEFINED = 0
    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


# Tokens that end a reply whatever their type: the texts by which llama.cpp finds its end-of-generation set.
END_TEXTS = frozenset(
    [
        *("<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|flush|>", "<|calls|>"),
        *("<end_of_turn>", "<|endoftext|>", "<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]"),
        *("<|end_of_text|>", "<end_of_utterance>", "<eos>", "<turn|>", "<|tool_response>", "[e~["),
        "<\uff5cend\u2581of\u2581sentence\uff5c>",
    ]
)
# The same for files and repositories: a code model that begins another file has finished.
FILE_TEXTS = frozenset(
    [
        *("<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]", "<|fim_repo|>", "<|repo_name|>"),
        *("<fim-repo>", "<REPO>", "<reponame>", "<|file_sep|>"),
    ]
)
KNOWN_ENDS = END_TEXTS | FILE_TEXTS | {"</s>"}
# Where these occur together, <|end|> closes one message of a reply that goes on.
SEVERAL_MESSAGES = ({"<|end|>", "<|return|>", "<|call|>"}, {"<|end|>", "<|calls|>", "<|flush|>"})
END_KEYS = (
    "eos_token_id",
    "eot_token_id",
    "eom_token_id",
    "fim_pad_token_id",
    "fim_rep_token_id",
    "fim_sep_token_id",
)

NAMED_KEYS = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "pad_token": "padding_token_id",
}


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Tokens by id, in one block of bytes because a quarter of a million Python strings take 20 MB."""

    texts: bytes  # all tokens' UTF-8, one after the other
    ends: "array[int]"  # where each token's text ends
    types: bytes  # a TokenType each
    bos_id: int | None
    eos_id: int | None
    unknown_id: int | None
    end_ids: frozenset[int]  # every token that ends a reply
    names: Mapping[str, str]  # texts of bos, eos, unknown and padding tokens, for templates

    def __len__(self) -> int:
        return len(self.ends)

    def raw(self, token: int) -> bytes:
        """The token's text as the file has it."""
        return self.texts[self.ends[token - 1] if token else 0 : self.ends[token]]

    def text(self, token: int) -> str:
        """The token's text as the file has it."""
        return self.raw(token).decode()

    def of_type(self, *kinds: TokenType) -> list[int]:
        """The ids of all tokens of these types, in order."""
        chosen = bytes(kind in kinds for kind in range(256))
        return [*compress(range(len(self)), self.types.translate(chosen))]


def read_vocabulary(metadata: Mapping[str, Any]) -> tuple[Vocabulary, list[bytes]]:
    """The checked vocabulary, and its texts one by one for those who build a tokeniser from them."""
    tokens, distinct = _read_tokens(metadata)
    types = _read_types(metadata, len(tokens))
    ids = {key: _read_id(metadata, key, len(tokens)) for key in (*END_KEYS, *NAMED_KEYS.values())}
    if metadata[PREFIX + "model"] == "llama":
        for key, default in {"bos_token_id": 1, "eos_token_id": 2, "unknown_token_id": 0}.items():
            ids[key] = default if ids[key] is None and default < len(tokens) else ids[key]
    known = {text for text in KNOWN_ENDS if text.encode() in distinct}
    found = {text: tokens.index(text.encode()) for text in known}
    vocabulary = Vocabulary(
        end_ids=_end_tokens(found, types, {ids[key] for key in END_KEYS}),  # which changes types
        texts=b"".join(tokens),
        ends=array("I", accumulate(map(len, tokens))),
        types=bytes(types),
        bos_id=ids["bos_token_id"],
        eos_id=ids["eos_token_id"],
        unknown_id=ids["unknown_token_id"],
        names={name: tokens[i].decode() for name, key in NAMED_KEYS.items() if (i := ids[key]) is not None},
    )
    return vocabulary, tokens


def read_flag(metadata: Mapping[str, Any], key: str, default: bool) -> bool:
    """A yes or no of the tokeniser's metadata."""
    value = metadata.get(PREFIX + key, default)
    if not isinstance(value, bool):
        raise CorruptModel(f"{PREFIX}{key} must be a boolean, not {value!r}")
    return value


def read_scores(metadata: Mapping[str, Any], count: int) -> "array[float]":
    """A score for each token."""
    try:
        scores = array("f", _read_list(metadata, "scores", count))
    except (TypeError, OverflowError):
        scores = array("f", [math.nan])
    if not math.isfinite(sum(scores)):
        raise CorruptModel(f"{PREFIX}scores has an entry that is not a finite number")
    return scores


def read_texts(metadata: Mapping[str, Any], key: str) -> list[bytes]:
    """A list of strings of the tokeniser's metadata, as UTF-8."""
    value = metadata.get(PREFIX + key)
    if value is None:
        raise CorruptModel(f"the model has no {PREFIX}{key}")
    if isinstance(value, StringArray):
        return value.encoded()
    if isinstance(value, str | bytes) or not isinstance(value, Iterable):
        raise CorruptModel(f"{PREFIX}{key} must be an array of strings")
    strings = list(value)
    if not all(type(text) is str for text in strings):
        raise CorruptModel(f"{PREFIX}{key} must be an array of strings")
    try:
        return [text.encode() for text in strings]
    except UnicodeEncodeError as error:
        raise CorruptModel(f"{PREFIX}{key} has an entry that is not Unicode text: {error}") from None


def _read_list(metadata: Mapping[str, Any], key: str, count: int) -> list[Any]:
    value = metadata[PREFIX + key]
    if isinstance(value, str | bytes) or not isinstance(value, Sequence | array | memoryview):
        raise CorruptModel(f"{PREFIX}{key} must be an array")
    if len(value) != count:
        raise CorruptModel(f"{PREFIX}{key} has {len(value)} entries for {count} tokens")
    return value.tolist() if isinstance(value, memoryview) else list(value)


def _read_tokens(metadata: Mapping[str, Any]) -> tuple[list[bytes], set[bytes]]:
    """The tokens' texts, in order and as a set."""
    tokens = read_texts(metadata, "tokens")
    if not tokens:
        raise CorruptModel("the model's vocabulary is empty")
    if len(tokens) > MAX_TOKENS:
        raise UnsupportedModel(f"the vocabulary has {len(tokens)} tokens; at most {MAX_TOKENS} are supported")
    if b"" in tokens:  # llama.cpp's name for them, so that ids keep their places
        tokens = [text or b"[EMPTY_%d]" % i for i, text in enumerate(tokens)]
    distinct = set(tokens)
    if len(distinct) != len(tokens):
        raise CorruptModel(f"{PREFIX}tokens has the same token twice")
    return tokens, distinct


def _read_types(metadata: Mapping[str, Any], count: int) -> bytearray:
    if PREFIX + "token_type" not in metadata:
        return bytearray([TokenType.NORMAL]) * count
    try:
        types = bytearray(_read_list(metadata, "token_type", count))
    except (TypeError, ValueError):
        types = bytearray([255])
    if types.translate(None, bytes(TokenType)):
        raise CorruptModel(f"{PREFIX}token_type has an entry that is not a token type")
    return types


def _read_id(metadata: Mapping[str, Any], key: str, count: int) -> int | None:
    value = metadata.get(PREFIX + key)
    if value is None:
        return None
    if type(value) is not int or not 0 <= value < count:
        raise CorruptModel(f"{PREFIX}{key} is {value!r}, but the vocabulary has {count} tokens")
    return value


def _end_tokens(found: dict[str, int], types: bytearray, declared: set[int | None]) -> frozenset[int]:
    """Every token that ends a reply; those `found` by their text become control tokens in `types`.

    "</s>" counts only as a control token: in Gemma's vocabulary it is HTML.
    """
    if "</s>" in found and types[found["</s>"]] != TokenType.CONTROL:
        del found["</s>"]
    for token in found.values():
        types[token] = TokenType.CONTROL
    if any(found.keys() >= others for others in SEVERAL_MESSAGES):
        del found["<|end|>"]
    return frozenset(found.values()) | {token for token in declared if token is not None}
