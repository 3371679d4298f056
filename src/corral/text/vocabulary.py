"""A model's tokens as its files list them, checked, and what each of them is for."""

import enum
import math
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, compress
from typing import Any

from corral.errors import CorruptModel, UnsupportedModel

__all__ = [
    "TokenType",
    "Vocabulary",
    "decode_all",
    "read_flag",
    "read_ids",
    "read_scores",
    "read_texts",
    "read_vocabulary",
]

MAX_TOKENS = 1 << 21


class TokenType(enum.IntEnum):
    """What a token is, by SentencePiece's numbers."""

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

# Flags of added tokens; the tokens that have one are in the field of that name and `_ids`.
ADDED_FLAGS = ("lstrip", "rstrip", "single_word")

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


def read_vocabulary(fields: Mapping[str, Any]) -> tuple[Vocabulary, list[bytes]]:
    """The checked vocabulary, and its texts one by one for those who build a tokeniser from them.

    `fields` are those of TextAssets.vocabulary.
    """
    tokens, distinct = _read_tokens(fields)
    types = _read_types(fields, len(tokens))
    ids = {key: _read_id(fields, key, len(tokens)) for key in (*END_KEYS, *NAMED_KEYS.values())}
    if fields["model"] == "llama":
        for key, default in {"bos_token_id": 1, "eos_token_id": 2, "unknown_token_id": 0}.items():
            ids[key] = default if ids[key] is None and default < len(tokens) else ids[key]
    known = {text for text in KNOWN_ENDS if text.encode() in distinct}
    found = {text: tokens.index(text.encode()) for text in known}
    vocabulary = Vocabulary(
        end_ids=_end_tokens(found, types, {ids[key] for key in END_KEYS})  # which changes types
        | read_ids(fields, "end_ids"),
        texts=b"".join(tokens),
        ends=array("I", accumulate(map(len, tokens))),
        types=bytes(types),
        bos_id=ids["bos_token_id"],
        eos_id=ids["eos_token_id"],
        unknown_id=ids["unknown_token_id"],
        names={name: tokens[i].decode() for name, key in NAMED_KEYS.items() if (i := ids[key]) is not None},
    )
    return vocabulary, tokens


def read_flag(fields: Mapping[str, Any], key: str, default: bool) -> bool:
    """A yes or no of the vocabulary's fields."""
    value = fields.get(key, default)
    if not isinstance(value, bool):
        raise CorruptModel(f"the tokeniser's '{key}' must be a boolean, not {value!r:.80}")
    return value


def read_ids(fields: Mapping[str, Any], key: str) -> frozenset[int]:
    """Some tokens of the vocabulary's fields; none if there is no such field."""
    return frozenset(fields.get(key, ()))


def read_scores(fields: Mapping[str, Any], count: int) -> "array[float]":
    """A score for each token."""
    try:
        scores = array("f", _read_list(fields, "scores", count))
    except (TypeError, OverflowError):
        scores = array("f", [math.nan])
    if not math.isfinite(sum(scores)):
        raise CorruptModel("the tokeniser's 'scores' have an entry that is not a finite number")
    return scores


def read_texts(fields: Mapping[str, Any], key: str) -> list[bytes]:
    """A list of strings of the vocabulary's fields, as UTF-8."""
    value = fields.get(key)
    if value is None:
        raise CorruptModel(f"the tokeniser has no '{key}'")
    if not isinstance(value, list) or not all(type(text) is bytes for text in value):
        raise CorruptModel(f"the tokeniser's '{key}' must be an array of strings")
    return value


def decode_all(strings: list[bytes]) -> list[str]:
    """Many strings from their UTF-8, at once."""
    decoded = b"\0".join(strings).decode().split("\0")
    return decoded if len(decoded) == len(strings) else [raw.decode() for raw in strings]


def _read_list(fields: Mapping[str, Any], key: str, count: int) -> list[Any]:
    value = fields[key]
    if isinstance(value, str | bytes) or not isinstance(value, Sequence | array | memoryview):
        raise CorruptModel(f"the tokeniser's '{key}' must be an array")
    if len(value) != count:
        raise CorruptModel(f"the tokeniser's '{key}' has {len(value)} entries for {count} tokens")
    return value.tolist() if isinstance(value, memoryview) else list(value)


def _read_tokens(fields: Mapping[str, Any]) -> tuple[list[bytes], set[bytes]]:
    """The tokens' texts, in order and as a set."""
    tokens = read_texts(fields, "tokens")
    if not tokens:
        raise CorruptModel("the model's vocabulary is empty")
    if len(tokens) > MAX_TOKENS:
        raise UnsupportedModel(f"the vocabulary has {len(tokens)} tokens; at most {MAX_TOKENS} are supported")
    if b"" in tokens:  # llama.cpp's name for them, so that ids keep their places
        tokens = [text or b"[EMPTY_%d]" % i for i, text in enumerate(tokens)]
    distinct = set(tokens)
    if len(distinct) != len(tokens):
        raise CorruptModel("the vocabulary has the same token twice")
    return tokens, distinct


def _read_types(fields: Mapping[str, Any], count: int) -> bytearray:
    if "token_type" not in fields:
        return bytearray([TokenType.NORMAL]) * count
    try:
        types = bytearray(_read_list(fields, "token_type", count))
    except (TypeError, ValueError):
        types = bytearray([255])
    if types.translate(None, bytes(TokenType)):
        raise CorruptModel("the tokeniser's 'token_type' has an entry that is not a token type")
    return types


def _read_id(fields: Mapping[str, Any], key: str, count: int) -> int | None:
    value = fields.get(key)
    if value is None:
        return None
    if type(value) is not int or not 0 <= value < count:
        raise CorruptModel(f"the tokeniser's '{key}' is {value!r:.80}, but the vocabulary has {count} tokens")
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
