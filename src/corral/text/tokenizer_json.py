"""A tokenizer.json, the `tokenizers` library's description of a tokeniser.

Byte-level BPE is left to the library, which is its definition. BPE that was made from SentencePiece (Llama 2,
Mistral, Gemma) goes the way of text/spm.py: at 262,144 tokens that takes a quarter of the memory and half the
time. Added tokens are taken out of the description beforehand: text/tokenizer.py finds them, because what a
conversation says must never become a control token.
"""

from array import array
from collections.abc import Mapping
from itertools import compress
from typing import Any

import msgspec
import tokenizers

from corral.errors import CorruptModel, UnsupportedModel
from corral.text.bpe import byte_level_bytes
from corral.text.merges import merges_follow_pieces
from corral.text.spm import BYTE_TOKENS
from corral.text.vocabulary import ADDED_FLAGS, MAX_TOKENS, NAMED_KEYS, TokenType, Vocabulary
from corral.weights.source import TextAssets

__all__ = ["LibraryBPE", "read_definition"]

NULL = msgspec.Raw(b"null")
_REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
_NORMALIZERS = {"never": [_REPLACE], "always": [{"type": "Prepend", "prepend": "▁"}, _REPLACE]}
_IS_WHOLE = bytes(kind in (TokenType.BYTE, TokenType.CONTROL) for kind in range(256))  # 1 for these types
_METASPACE = {"never": "never", "always": "unless there", "first": "first, unless there"}
MAX_RULE = 1 << 20  # bytes of a normaliser and the like


class _Added(msgspec.Struct):
    id: int
    content: str
    single_word: bool = False
    lstrip: bool = False
    rstrip: bool = False
    special: bool = False


class _BPE(msgspec.Struct):
    vocab: dict[str, int]
    merges: msgspec.Raw
    type: str = "BPE"
    dropout: float | None = None
    unk_token: str | None = None
    continuing_subword_prefix: str | None = None
    end_of_word_suffix: str | None = None
    byte_fallback: bool = False
    ignore_merges: bool = False


class _Kind(msgspec.Struct):
    type: str = "BPE"


class _SpecialToken(msgspec.Struct):
    id: str


class _Step(msgspec.Struct, rename={"special": "SpecialToken", "sequence": "Sequence"}):
    special: _SpecialToken | None = None
    sequence: Any = None


class _Processor(msgspec.Struct):
    """What is put around a text: a template, or several processors."""

    single: list[_Step] = []
    processors: list["_Processor"] = []


class _Definition(msgspec.Struct):
    model: msgspec.Raw
    added_tokens: list[_Added] = []
    normalizer: msgspec.Raw = NULL
    pre_tokenizer: msgspec.Raw = NULL
    post_processor: _Processor | None = None
    decoder: msgspec.Raw = NULL


class LibraryBPE:
    """BPE by the library, with the normaliser and the pre-tokeniser of the description."""

    add_bos = False

    def __init__(self, fields: Mapping[str, Any], vocabulary: Vocabulary, texts: list[bytes]):
        self._vocabulary = vocabulary
        self._bytes_of = byte_level_bytes if fields["byte_level"] else _piece_bytes
        try:
            self._encoder = tokenizers.Tokenizer.from_buffer(fields["definition"])
        except Exception as error:  # the library has no error class of its own
            raise CorruptModel(f"tokenizer.json cannot be used: {error}") from None

    def prefixed(self, text: str, first: bool) -> str:
        """The text: the library itself puts a space before it where the description says so."""
        return text

    def encode(self, text: str) -> list[int]:
        """Token ids of text without added tokens. Releases the interpreter's lock."""
        try:
            ids: list[int] = self._encoder.encode_batch_fast([text], add_special_tokens=False)[0].ids
        except Exception as error:
            raise CorruptModel(f"tokenizer.json cannot encode this text: {error}") from None
        return ids

    def token_bytes(self, token: int) -> bytes:
        """The bytes that a token stands for."""
        raw, kind = self._vocabulary.raw(token), self._vocabulary.types[token]
        if kind == TokenType.BYTE:
            return BYTE_TOKENS[raw]
        return self._bytes_of(raw.decode()) if kind == TokenType.NORMAL else raw


def read_definition(assets: TextAssets) -> dict[str, Any]:
    """The vocabulary's fields by canonical name; those that `assets` has go before the file's own."""
    try:
        definition = msgspec.json.decode(assets.tokenizer_json, type=_Definition)
        kind = msgspec.json.decode(definition.model, type=_Kind).type
        if kind != "BPE":
            raise UnsupportedModel(f"a tokenizer.json of the kind {kind!r:.80} is not supported; BPE is")
        model = msgspec.json.decode(definition.model, type=_BPE)
        rules = definition.normalizer, definition.pre_tokenizer, definition.decoder
        normalizer, pre_tokenizer, decoder = map(_read_rule, rules)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise CorruptModel(f"tokenizer.json cannot be read: {error}") from None
    fields = _vocabulary(model, definition.added_tokens)
    byte_level = "ByteLevel" in _kinds(decoder)
    space_rule = None if byte_level else _space_rule(normalizer, pre_tokenizer)
    if space_rule and _is_from_pieces(model, fields):
        scores = array("f", range(0, -len(fields["tokens"]), -1))
        fields |= {"model": "llama", "space_rule": space_rule, "scores": scores, "merge_user_defined": True}
    elif byte_level or model.byte_fallback:
        if b'"first"' in bytes(definition.pre_tokenizer):
            raise UnsupportedModel("tokenizer.json: a space before the first word alone is not supported")
        alone = _without_added_tokens(definition)
        fields |= {"model": "tokenizer.json", "definition": alone, "byte_level": byte_level}
    else:
        raise UnsupportedModel(
            "this tokenizer.json is not supported: it is no BPE of bytes, nor one that falls back to them "
            f"(decoders: {', '.join(_kinds(decoder)) or 'none'})"
        )
    bos = _first_token(definition.post_processor or _Processor())
    said = {"bos_token": bos, "unk_token": model.unk_token}
    names = {name: text for name, text in {**said, **assets.names}.items() if text}
    ids = _named_ids(fields["tokens"], names)
    return {**fields, "add_bos_token": bos is not None, **ids, **assets.vocabulary}


def _read_rule(rule: msgspec.Raw) -> dict[str, Any]:
    """A normaliser or the like; empty if there is none."""
    if len(memoryview(rule)) > MAX_RULE:
        raise UnsupportedModel(f"tokenizer.json has a rule of more than {MAX_RULE} bytes")
    return msgspec.json.decode(rule, type=dict[str, Any] | None) or {}


def _vocabulary(model: _BPE, added: list[_Added]) -> dict[str, Any]:
    """Tokens, their types, and which added ones have flags."""
    ids = [*model.vocab.values(), *(token.id for token in added)]
    if not ids or min(ids) < 0 or max(ids) >= MAX_TOKENS:
        raise CorruptModel(f"tokenizer.json must have tokens, with numbers from 0 to {MAX_TOKENS - 1}")
    tokens, types = [b""] * (max(ids) + 1), bytearray([TokenType.UNUSED]) * (max(ids) + 1)
    for text, token in model.vocab.items():
        tokens[token] = text.encode()
        types[token] = TokenType.NORMAL
    for raw in BYTE_TOKENS if model.byte_fallback else ():
        if (byte := model.vocab.get(raw.decode())) is not None:
            types[byte] = TokenType.BYTE
    for each in added:
        tokens[each.id] = each.content.encode()
        types[each.id] = TokenType.CONTROL if each.special else TokenType.USER_DEFINED
    flagged = {f"{flag}_ids": [each.id for each in added if getattr(each, flag)] for flag in ADDED_FLAGS}
    return {"tokens": tokens, "token_type": types, **flagged}


def _space_rule(normalizer: dict[str, Any], pre_tokenizer: dict[str, Any]) -> str | None:
    """Which of text/spm.py's rules these two amount to; None if they do anything else."""
    if not normalizer and pre_tokenizer.get("type") == "Metaspace":
        plain = pre_tokenizer.get("replacement") == "▁" and pre_tokenizer.get("split") is False
        return _METASPACE.get(str(pre_tokenizer.get("prepend_scheme"))) if plain else None
    # A split at spaces does nothing: the normaliser has left none.
    if pre_tokenizer and pre_tokenizer.get("pattern") != {"String": " "}:
        return None
    steps = normalizer.get("normalizers", [normalizer])
    return next((rule for rule, those in _NORMALIZERS.items() if steps == those), None)


def _is_from_pieces(model: _BPE, fields: Mapping[str, Any]) -> bool:
    """Whether SentencePiece's way, by the order of the vocabulary, gives the same tokens."""
    if model.ignore_merges or model.dropout or model.continuing_subword_prefix or model.end_of_word_suffix:
        return False
    tokens, types = fields["tokens"], fields["token_type"]
    if types.count(TokenType.BYTE) != len(BYTE_TOKENS):
        return False
    never_merged = compress(tokens, types.translate(_IS_WHOLE))
    pieces = model.vocab.copy()
    for raw in never_merged:
        pieces.pop(raw.decode(), None)
    return merges_follow_pieces(memoryview(model.merges), pieces, tokens)


def _kinds(rule: Any, depth: int = 4) -> list[str]:
    """The kind of a rule and of the rules inside it."""
    if isinstance(rule, list) and depth:
        return [kind for inner in rule for kind in _kinds(inner, depth - 1)]
    if not isinstance(rule, dict) or not rule:
        return []
    inside = [rule.get(key) for key in ("normalizers", "pretokenizers", "processors", "decoders")]
    return [str(rule.get("type")), *_kinds(inside, depth)]


def _first_token(post_processor: _Processor) -> str | None:
    """The token that a post-processor puts before the text, if it is one."""
    for processor in (post_processor, *post_processor.processors):
        first, second = [*processor.single[:2], *[_Step()] * 2][:2]
        if first.special and second.sequence is not None:
            return first.special.id
    return None


def _named_ids(tokens: list[bytes], names: Mapping[str, str]) -> dict[str, int]:
    """The numbers of bos_token and the like, of those that the vocabulary has."""
    encoded = {NAMED_KEYS[name]: text.encode() for name, text in names.items()}
    return {key: tokens.index(text) for key, text in encoded.items() if text in tokens}


def _without_added_tokens(definition: _Definition) -> bytes:
    rules = {"normalizer": definition.normalizer, "pre_tokenizer": definition.pre_tokenizer}
    return msgspec.json.encode({"version": "1.0", "added_tokens": [], **rules, "model": definition.model})


def _piece_bytes(text: str) -> bytes:
    return text.replace("▁", " ").encode()
