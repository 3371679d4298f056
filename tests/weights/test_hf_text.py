"""The text side of a folder: templates, end tokens, sampling defaults, tokenizer.model."""

import contextlib
import io
import json
import struct
from typing import Any

import pytest
import sentencepiece

import gguf_files
from corral.errors import CorralError, CorruptModel, UnsupportedModel
from corral.text.tokenizer import load_tokenizer
from corral.weights.folder_files import FolderFiles
from corral.weights.hf_text import read_text
from corral.weights.source import TextAssets
from corral.weights.tokenizer_model import read_tokenizer_model


def assets(tmp_path, files: dict[str, Any], config: dict[str, Any] | None = None) -> TextAssets:
    for name, content in {"tokenizer.json": "{}", **files}.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            path.write_text(content if isinstance(content, str) else json.dumps(content))
    return read_text(FolderFiles(tmp_path), config or {})


TEMPLATES: dict[str, tuple[dict[str, Any], dict[str, str]]] = {
    "none": ({}, {}),
    "in the settings": ({"tokenizer_config.json": {"chat_template": "A"}}, {"default": "A"}),
    "several in the settings": (
        {
            "tokenizer_config.json": {
                "chat_template": [{"name": "default", "template": "A"}, {"name": "tool_use", "template": "B"}]
            }
        },
        {"default": "A", "tool_use": "B"},
    ),
    "in a file of its own": (
        {"chat_template.jinja": "J", "tokenizer_config.json": {"chat_template": "A"}},
        {"default": "J"},
    ),
    "in a JSON file": ({"chat_template.json": {"chat_template": "C"}}, {"default": "C"}),
    "others in a folder": (
        {"chat_template.jinja": "J", "additional_chat_templates/tool_use.jinja": "T"},
        {"default": "J", "tool_use": "T"},
    ),
}


@pytest.mark.parametrize("case", TEMPLATES)
def test_templates_are_found_in_each_of_their_places(tmp_path, case) -> None:
    files, expected = TEMPLATES[case]
    assert assets(tmp_path, files).templates == expected


def test_settings_name_tokens_as_text_or_as_an_object(tmp_path) -> None:
    settings = {"bos_token": {"content": "<s>", "lstrip": False}, "eos_token": "</s>", "pad_token": None}
    files = {
        "tokenizer_config.json": settings,
        "special_tokens_map.json": {"unk_token": "<unk>", "eos_token": "x"},
    }
    assert assets(tmp_path, files).names == {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}


def test_end_tokens_of_both_configurations_count(tmp_path) -> None:
    found = assets(tmp_path, {"generation_config.json": {"eos_token_id": [7, 2]}}, {"eos_token_id": 3})
    assert found.vocabulary["end_ids"] == [2, 3, 7]
    with pytest.raises(CorruptModel, match="eos_token_id"):
        assets(tmp_path, {"generation_config.json": {"eos_token_id": ["</s>"]}})


def test_sampling_defaults_have_the_names_of_a_modelfile(tmp_path) -> None:
    values = {
        "temperature": 0.6,
        "top_k": 20,
        "top_p": 0.95,
        "repetition_penalty": 1.1,
        "min_p": None,
        "max_length": 9,
    }
    expected = {"temperature": 0.6, "top_k": 20, "top_p": 0.95, "repeat_penalty": 1.1}
    assert assets(tmp_path, {"generation_config.json": {**values, "do_sample": True}}).sampling == expected
    assert assets(tmp_path, {"generation_config.json": {**values, "do_sample": False}}).sampling == {}
    assert (
        assets(tmp_path, {"generation_config.json": '{"temperature": Infinity, "top_p": true}'}).sampling
        == {}
    )


DAMAGED = {
    "settings": {"tokenizer_config.json": "{"},
    "settings of another shape": {"tokenizer_config.json": {"chat_template": 3}},
    "deep settings": {"tokenizer_config.json": '{"x":' + "[" * 100_000},
    "template": {"chat_template.jinja": b"\xff"},
    "long template": {"chat_template.jinja": "x" * (2 << 20)},
    "generation": {"generation_config.json": "[]"},
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damaged_files_are_refused(tmp_path, case) -> None:
    with pytest.raises((CorruptModel, UnsupportedModel)):
        assets(tmp_path, DAMAGED[case])


def test_folder_without_a_tokeniser_is_refused(tmp_path) -> None:
    with pytest.raises(UnsupportedModel, match=r"no tokenizer\.json and no tokenizer\.model"):
        read_text(FolderFiles(tmp_path), {})


def train(**options: Any) -> bytes:
    """A real tokenizer.model, of 400 pieces."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([gguf_files.CORPUS, "Ärger über Öl, naïve cafés"] * 10),
        model_writer=model,
        vocab_size=options.pop("vocab_size", 400),
        model_type=options.pop("model_type", "bpe"),
        byte_fallback=True,
        user_defined_symbols=["<tool>"],
        minloglevel=2,
        **{"normalization_rule_name": "identity", "remove_extra_whitespaces": False, **options},
    )
    return model.getvalue()


@pytest.mark.parametrize("prefix", [True, False])
def test_tokenizer_model_gives_the_ids_of_its_library(tmp_path, prefix) -> None:
    model = train(add_dummy_prefix=prefix)
    (tmp_path / "tokenizer.model").write_bytes(model)
    tokenizer = load_tokenizer(read_text(FolderFiles(tmp_path), {}))
    library = sentencepiece.SentencePieceProcessor(model_proto=model)
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.add_bos) == (1, 2, True)
    for text in [
        "the sheep  and the horses",
        " lead\n",
        "Ölig 🙂 日本",
        "a\r\n\tb",
        "<s>x</s>",
        "water <tool>",
    ]:
        ids = tokenizer.encode(text, special=False, add_bos=False)
        assert ids == library.encode(text)
        assert b"".join(map(tokenizer.token_bytes, ids)).decode() == (" " if prefix else "") + text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model_type": "unigram", "vocab_size": 300}, "not a BPE"),
        ({"normalization_rule_name": "nmt_nfkc"}, "normalises text"),
        ({"remove_extra_whitespaces": True}, "normalises text"),
    ],
)
def test_tokenizer_model_that_cannot_be_exact_is_unsupported(options, message) -> None:
    with pytest.raises(UnsupportedModel, match=message):
        read_tokenizer_model("m", train(**options))


def test_damaged_tokenizer_model_is_refused() -> None:
    model = train()
    for wrong in (
        b"\xff",
        b"\x0a\xff\xff\xff\xff\xff\x7f",
        b"\x0b",
        b"\x80" * 20,
        b"\x0a\x02\x0a\x05",
        b"\x08\x01",
    ):
        with pytest.raises((CorruptModel, UnsupportedModel)):
            read_tokenizer_model("m", wrong)
    for at in range(0, len(model), 37):
        for changed in (model[:at], model[:at] + bytes([255 - model[at]]) + model[at + 1 :]):
            with contextlib.suppress(CorralError):
                load_tokenizer(TextAssets(read_tokenizer_model("m", changed)))
    huge = b"\x0a\x00" * (1 << 20) + b"\x0a\x00"
    with pytest.raises(UnsupportedModel, match="more than 1048576 pieces"):
        read_tokenizer_model("m", huge)
    infinite = struct.pack("<bbbf", 0x0A, 5, 0x15, float("inf"))
    with pytest.raises(CorralError):
        load_tokenizer(TextAssets(read_tokenizer_model("m", infinite + b"\x12\x02\x18\x02\x1a\x02\x20\x00")))
