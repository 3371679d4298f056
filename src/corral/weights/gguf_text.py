"""The text side of a GGUF file: its `tokenizer.*` metadata."""

from collections.abc import Mapping
from typing import Any

from corral.weights.cursor import StringArray
from corral.weights.source import DEFAULT_TEMPLATE, TextAssets

__all__ = ["read_text"]

VOCABULARY, TEMPLATE = "tokenizer.ggml.", "tokenizer.chat_template"
CONTROL_TYPES = (2, 3, 4)  # tokenizer.ggml.token_type: unknown, control, user-defined
# Of Phi-3's control tokens these alone leave the white space after them as it is.
_KEEP_SPACE = (b"<unk>", b"<s>", b"<|endoftext|>")


def read_text(metadata: Mapping[str, Any]) -> TextAssets:
    """The vocabulary by canonical names, those after `tokenizer.ggml.`, and the templates by name."""
    vocabulary = {
        key.removeprefix(VOCABULARY): value.encoded() if isinstance(value, StringArray) else value
        for key, value in metadata.items()
        if key.startswith(VOCABULARY)
    }
    name = str(metadata.get("general.name", "")).lower()
    if "phi-3" in name or "phi3" in name:
        vocabulary["rstrip_ids"] = _control_tokens(vocabulary)
    templates = {
        key.removeprefix(TEMPLATE).removeprefix(".") or DEFAULT_TEMPLATE: value
        for key, value in metadata.items()
        if (key == TEMPLATE or key.startswith(f"{TEMPLATE}.")) and isinstance(value, str)
    }
    return TextAssets(vocabulary, templates=templates)


def _control_tokens(vocabulary: Mapping[str, Any]) -> list[int]:
    """Phi-3's control tokens swallow the white space after them; in the file only its name says so."""
    tokens, types = vocabulary.get("tokens"), vocabulary.get("token_type")
    if not isinstance(tokens, list) or not isinstance(types, list | memoryview):
        return []
    rows = zip(tokens, types, strict=False)
    return [i for i, (text, kind) in enumerate(rows) if kind in CONTROL_TYPES and text not in _KEEP_SPACE]
