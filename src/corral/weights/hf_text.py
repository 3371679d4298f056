"""The text side of a Hugging Face folder: tokeniser, chat templates, end tokens and sampling defaults."""

import math
from collections.abc import Mapping
from typing import Any

import msgspec

from corral.errors import CorruptModel, UnsupportedModel
from corral.weights.folder_files import FolderFiles
from corral.weights.source import DEFAULT_TEMPLATE, TextAssets
from corral.weights.tokenizer_model import read_tokenizer_model

__all__ = ["read_text"]

MAX_TOKENIZER = 48 << 20  # bytes; the largest there is, of 262,144 tokens, has 33 MB
MAX_TEMPLATE, MAX_CONFIG = 1 << 20, 8 << 20
MOST_TEMPLATES = 32  # in a folder of them
TEMPLATE_FOLDERS = ("additional_chat_templates", "chat_templates")
NAMES = ("bos_token", "eos_token", "unk_token", "pad_token")
_SAMPLING = {
    "temperature": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "repetition_penalty": "repeat_penalty",
}


class _Token(msgspec.Struct):
    content: str


class _Template(msgspec.Struct):
    name: str
    template: str


_Text = str | _Token | None


class _Settings(msgspec.Struct):
    """tokenizer_config.json; special_tokens_map.json and chat_template.json have some of the same keys."""

    bos_token: _Text = None
    eos_token: _Text = None
    unk_token: _Text = None
    pad_token: _Text = None
    add_bos_token: bool | None = None
    chat_template: str | list[_Template] | None = None


def read_text(files: FolderFiles, config: Mapping[str, Any]) -> TextAssets:
    """What the folder has; UnsupportedModel if it has no tokeniser of a known kind."""
    generation = files.read_json("generation_config.json")
    settings = _read_settings(files, "tokenizer_config.json")
    special = _read_settings(files, "special_tokens_map.json")
    definition = files.read("tokenizer.json", MAX_TOKENIZER)
    pieces = None if definition else files.read("tokenizer.model", MAX_TOKENIZER)
    if definition is None and pieces is None:
        raise UnsupportedModel(
            f"{files.name} has no tokenizer.json and no tokenizer.model: no tokeniser to use"
        )
    vocabulary = {} if pieces is None else read_tokenizer_model(files.name, pieces)
    vocabulary["end_ids"] = _end_ids(generation, config)
    if settings.add_bos_token is not None:
        vocabulary["add_bos_token"] = settings.add_bos_token
    texts = {name: _text(getattr(settings, name)) or _text(getattr(special, name)) for name in NAMES}
    return TextAssets(
        vocabulary,
        definition or b"",
        {name: text for name, text in texts.items() if text},
        _templates(files, settings),
        _sampling(generation),
    )


def _read_settings(files: FolderFiles, name: str) -> _Settings:
    try:
        return msgspec.json.decode(files.read(name, MAX_CONFIG) or b"{}", type=_Settings)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise CorruptModel(f"{files.name}: '{name}' cannot be read: {error}") from None


def _text(token: _Text) -> str:
    return token.content if isinstance(token, _Token) else token or ""


def _end_ids(generation: Mapping[str, Any], config: Mapping[str, Any]) -> list[int]:
    """All tokens that end a reply: `eos_token_id` is one or several, in either file."""
    ids: set[int] = set()
    for source in (generation, config):
        value = source.get("eos_token_id")
        given = value if isinstance(value, list) else [] if value is None else [value]
        if not all(type(item) is int for item in given):
            raise CorruptModel(f"'eos_token_id' must be a token's number or several, got {value!r:.80}")
        ids.update(given)
    return sorted(ids)


def _templates(files: FolderFiles, settings: _Settings) -> dict[str, str]:
    """Chat templates by name; the first place that has a name counts."""
    found: dict[str, str] = {}
    jinja = files.read_text("chat_template.jinja", MAX_TEMPLATE)
    other = _read_settings(files, "chat_template.json")
    for given in (jinja, other.chat_template, settings.chat_template):
        if isinstance(given, str):
            found.setdefault(DEFAULT_TEMPLATE, given)
        for named in given if isinstance(given, list) else ():
            found.setdefault(named.name, named.template)
    for folder in filter(None, map(files.folder, TEMPLATE_FOLDERS)):
        for name in folder.names(".jinja")[:MOST_TEMPLATES]:
            found.setdefault(name.removesuffix(".jinja"), folder.read_text(name, MAX_TEMPLATE) or "")
    return found


def _sampling(generation: Mapping[str, Any]) -> dict[str, float]:
    """The authors' sampling defaults, unless they are for greedy decoding."""
    if generation.get("do_sample") is False:
        return {}
    values = {name: generation.get(key) for key, name in _SAMPLING.items()}
    return {
        name: value
        for name, value in values.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    }
