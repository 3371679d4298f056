"""tokenizer.json files for tests: a GGUF vocabulary as transformers would have saved it."""

import json
from collections.abc import Mapping
from typing import Any

from corral.text.pretokenizers import PRETOKENIZERS
from corral.weights.source import TextAssets

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6
REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
PREPEND = {"type": "Prepend", "prepend": "▁"}
METASPACE = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}


def bytes_json(assets: TextAssets, **changes: Any) -> dict[str, Any]:
    """A byte-level BPE."""
    fields = assets.vocabulary
    patterns = PRETOKENIZERS[fields["pre"]].patterns
    splits = [
        {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
        for pattern in patterns
    ]
    last = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return {
        **_definition(fields),
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [*splits, last]},
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "unk_token": None,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": _vocabulary(fields, _texts(fields)),
            "merges": [line.decode() for line in fields["merges"]],
        },
        **changes,
    }


def pieces_json(assets: TextAssets, *, pairs: bool = True, **changes: Any) -> dict[str, Any]:
    """A BPE as it is made of a SentencePiece vocabulary: a piece's merges are all pairs that make it."""
    fields = assets.vocabulary
    texts = [text.replace(" ", "▁") for text in _texts(fields)]
    types = list(fields["token_type"])
    mergeable = {text: i for i, text in enumerate(texts) if types[i] in (NORMAL, USER_DEFINED)}
    merges = [
        [text[:cut], text[cut:]]
        for text in mergeable
        for cut in range(1, len(text))
        if text[:cut] in mergeable and text[cut:] in mergeable
    ]
    decoders = [
        {**REPLACE, "pattern": {"String": "▁"}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    return {
        **_definition(fields, texts),
        "normalizer": REPLACE,
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": {
            "type": "BPE",
            "unk_token": "<unk>",
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": _vocabulary(fields, texts),
            "merges": merges if pairs else [" ".join(pair) for pair in merges],
        },
        **changes,
    }


def bos_template(token: str, number: int) -> dict[str, Any]:
    """A post-processor that puts one token first."""
    return {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": token, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {token: {"id": token, "ids": [number], "tokens": [token]}},
    }


def as_assets(
    definition: Mapping[str, Any], vocabulary: Mapping[str, Any] | None = None, **more: Any
) -> TextAssets:
    """The text side of a folder with this tokenizer.json."""
    return TextAssets(vocabulary or {}, json.dumps(definition, ensure_ascii=False).encode(), **more)


def _texts(fields: Mapping[str, Any]) -> list[str]:
    return [text.decode() for text in fields["tokens"]]


def _vocabulary(fields: Mapping[str, Any], texts: list[str]) -> dict[str, int]:
    return {text: i for i, text in enumerate(texts)}


def _definition(fields: Mapping[str, Any], texts: list[str] | None = None) -> dict[str, Any]:
    added = [
        {
            "id": i,
            "content": text,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": kind != USER_DEFINED,
        }
        for i, (text, kind) in enumerate(zip(texts or _texts(fields), fields["token_type"], strict=True))
        if kind in (UNKNOWN, CONTROL, USER_DEFINED)
    ]
    rules = dict.fromkeys(("truncation", "padding", "normalizer", "pre_tokenizer", "post_processor"))
    return {"version": "1.0", **rules, "added_tokens": added}
