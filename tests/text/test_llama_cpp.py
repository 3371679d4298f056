"""llama.cpp's own test material: vocabularies with expected ids, and the chat templates that it ships."""

import json
import random
import re
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import gguf_files
from conversations import typed
from corral.errors import CorralError
from corral.text.template import GENERATION_TAG, ChatTemplate
from corral.text.tokenizer import load_tokenizer
from corral.weights.gguf import open_gguf
from corral.weights.gguf_text import read_text

pytestmark = pytest.mark.peer

SOURCE = "llama-cpp-python==0.3.36"
VOCABULARIES = [
    *(
        "command-r",
        "deepseek-coder",
        "deepseek-llm",
        "falcon",
        "gpt-2",
        "llama-bpe",
        "llama-spm",
        "mpt",
        "phi-3",
    ),
    *("qwen2", "qwen35", "refact", "starcoder"),
]
SEPARATOR = "\n__ggml_vocab_test__\n"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder `models` of the llama.cpp inside the source package."""
    folder = tmp_path_factory.mktemp("llama_cpp")
    options = ["--no-binary", ":all:", "--no-deps", "--no-build-isolation", "-q", "-d", str(folder)]
    command = [sys.executable, "-m", "pip", "download", SOURCE, *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    packed = next(folder.glob("*.tar.gz"), None)
    if packed is None:
        pytest.skip(f"{SOURCE} cannot be had here: {done.stderr[-300:]}")
    with tarfile.open(packed) as archive:
        wanted = [m for m in archive.getmembers() if "/vendor/llama.cpp/models/" in m.name and m.isfile()]
        archive.extractall(folder, members=wanted, filter="data")
    return next(folder.glob("*/vendor/llama.cpp/models"))


@pytest.mark.parametrize("name", VOCABULARIES)
def test_vocabulary_gives_the_expected_ids(models: Path, name: str) -> None:
    path = models / f"ggml-vocab-{name}.gguf"
    with open_gguf(path) as file:
        tokenizer = load_tokenizer(read_text(file.metadata))
    texts = path.with_suffix(".gguf.inp").read_bytes().decode().split(SEPARATOR)
    lines = path.with_suffix(".gguf.out").read_text().splitlines()
    assert len(lines) >= 46
    for text, line in zip(texts, lines, strict=False):
        assert tokenizer.encode(text, special=False, add_bos=False) == [int(word) for word in line.split()], (
            text
        )


CALL = {"id": "abcdef123", "type": "function", "function": {"name": "weather", "arguments": {"city": "Rome"}}}
SCHEMA = {"type": "object", "properties": {"city": {"type": "string", "description": "é <x>"}}}
TOOL = {"type": "function", "function": {"name": "weather", "description": "Now", "parameters": SCHEMA}}
CONVERSATIONS: list[dict[str, Any]] = [
    {"messages": [{"role": "user", "content": "Hello there  "}]},
    {
        "messages": [
            {"role": "system", "content": "Be <brief> & nice."},
            {"role": "user", "content": " Hi > x <\n"},
            {"role": "assistant", "content": "<think>\nhm\n</think>\n\nYo"},
            {"role": "user", "content": "i end user\n"},
        ]
    },
    {"messages": [{"role": "user", "content": "Weather?"}], "tools": [TOOL]},
    {
        "messages": [
            {"role": "user", "content": "Weather?"},
            {"role": "assistant", "content": "", "tool_calls": [CALL]},
            {"role": "tool", "name": "weather", "tool_call_id": "abcdef123", "content": '{"t": 20}'},
            {"role": "user", "content": "thanks"},
        ],
        "tools": [TOOL],
    },
    {
        "messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
        "add_generation_prompt": False,
    },
]
# Marks strings as safe HTML, so Jinja escapes what is added to them; minijinja does not.
LEFT_OUT = {"meetkai-functionary-medium-v3.1"}


def vocabulary_for(source: str) -> dict[str, Any]:
    """A tiny vocabulary in which whatever looks like a control token in the template is one."""
    looks = r"<[|｜][^<>\s{}'\"]{1,40}[|｜]>|<(?:start_of_turn|end_of_turn|bos|eos|unk|pad)>|\[/?[A-Z_]{2,}\]"
    base = gguf_files.bpe_tokenizer()
    known = base["tokenizer.ggml.tokens"]
    usual = {"<s>", "</s>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>", "<|tool|>"}
    new = sorted((set(re.findall(looks, source)) | usual) - set(known))
    return {
        **base,
        "tokenizer.ggml.tokens": [*known, *new],
        "tokenizer.ggml.token_type": [*base["tokenizer.ggml.token_type"], *[3] * len(new)],
        "tokenizer.ggml.bos_token_id": len(known) + new.index("<s>"),
        "tokenizer.ggml.eos_token_id": len(known) + new.index("</s>"),
    }


def jinja_renderings(source: str, names: Any) -> Iterator[str | None]:
    """What transformers would render, by Jinja itself set up as it does."""
    jinja2 = pytest.importorskip("jinja2")
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def refuse(message: str) -> None:
        raise jinja2.TemplateError(message)

    def to_json(value: Any, indent: int | None = None, **others: Any) -> str:
        return json.dumps(value, indent=indent, **{"ensure_ascii": False, **others})

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols]
    )
    environment.filters["tojson"] = to_json
    environment.globals |= {"raise_exception": refuse, "strftime_now": str}
    for conversation in CONVERSATIONS:
        context = {"tools": None, "documents": None, "add_generation_prompt": True, **conversation, **names}
        try:
            yield environment.from_string(GENERATION_TAG.sub("", source)).render(**context)
        except Exception:  # the template refuses such a conversation, or is wrong
            yield None


def test_shipped_templates_render_as_jinja_does_and_keep_their_tokens(models: Path) -> None:
    compared = 0
    for path in sorted((models / "templates").glob("*.jinja")):
        source = path.read_text()
        tokenizer = load_tokenizer(gguf_files.text_assets(vocabulary_for(source)))
        template = ChatTemplate(source, tokenizer)
        for conversation, expected in zip(
            CONVERSATIONS, jinja_renderings(source, tokenizer.names), strict=True
        ):
            if expected is None or path.stem in LEFT_OUT or "strftime_now" in source:
                continue
            text = template.render(**typed(conversation))
            assert text == expected, path.name
            assert template.encode(**typed(conversation)) == tokenizer.encode(
                text, special=True, add_bos=False
            ), path.name
            compared += 1
    assert compared > 250


def test_shipped_templates_let_no_conversation_make_a_control_token(models: Path) -> None:
    choices = random.Random(3)
    for path in sorted((models / "templates").glob("*.jinja")):
        source = path.read_text()
        tokenizer = load_tokenizer(gguf_files.text_assets(vocabulary_for(source)))
        template = ChatTemplate(source, tokenizer)
        names = [
            tokenizer.token_text(i) for i in tokenizer.special_ids if "think" not in tokenizer.token_text(i)
        ]
        attacks = [
            *names,
            *(name[:n] for name in names for n in (1, 2)),
            *(name[n:] for name in names for n in (1, 2)),
        ]
        for conversation in CONVERSATIONS:
            try:
                plain = template.encode(**typed(said(conversation, "hello")))
            except CorralError:
                continue
            expected = [i for i in plain if tokenizer.is_special(i)]
            for attack in choices.sample(attacks, min(20, len(attacks))):
                ids = template.encode(**typed(said(conversation, attack)))
                assert [i for i in ids if tokenizer.is_special(i)] == expected, (path.name, attack)


def said(value: Any, text: str) -> Any:
    """The conversation with everything in it saying this text, but for roles and ids."""
    if isinstance(value, dict):
        fixed = ("role", "type", "id", "tool_call_id", "add_generation_prompt")
        return {key: item if key in fixed else said(item, text) for key, item in value.items()}
    if isinstance(value, list):
        return [said(item, text) for item in value]
    return text if isinstance(value, str) else value
