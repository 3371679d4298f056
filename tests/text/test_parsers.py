"""Thoughts are told from text however a reply is cut, and whatever the tags are in the vocabulary."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import gguf_files
from corral.text.detokenizer import Detokenizer
from corral.text.messages import Text, Thought
from corral.text.parsers.parser import PlainParser
from corral.text.parsers.table import find_parser
from corral.text.parsers.think import ThinkParser
from corral.text.template import ChatTemplate
from corral.text.tokenizer import Tokenizer, load_tokenizer


def tokenizer_with_tags(kind: int | None) -> Tokenizer:
    """The tags as tokens of this type (3 = control, 4 = user-defined); None = plain text."""
    base = gguf_files.bpe_tokenizer()
    tags = ["<think>", "</think>"] if kind else []
    metadata = {
        **base,
        "tokenizer.ggml.tokens": [*base["tokenizer.ggml.tokens"], *tags],
        "tokenizer.ggml.token_type": [*base["tokenizer.ggml.token_type"], *[kind for _ in tags]],
    }
    return load_tokenizer(gguf_files.text_assets(metadata))


TOKENIZERS = {
    "text": tokenizer_with_tags(None),
    "control": tokenizer_with_tags(3),
    "user": tokenizer_with_tags(4),
}
every_tokenizer = pytest.mark.parametrize("tokenizer", TOKENIZERS.values(), ids=TOKENIZERS.keys())


def encode(tokenizer: Tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text, special=True, add_bos=False)


def parsed(tokenizer: Tokenizer, reply: str, prompt: str = "", size: int = 1) -> tuple[str, str]:
    """Thoughts and text of a reply whose tokens come so many at a time."""
    parser = ThinkParser(tokenizer, encode(tokenizer, prompt))
    detokenizer = Detokenizer(tokenizer, markers=parser.markers)
    ids = encode(tokenizer, reply)
    said = []
    for start in range(0, len(ids), size):
        said += parser.push(detokenizer.pieces(ids[start : start + size]))
    said += [*parser.push([detokenizer.flush()]), *parser.flush()]
    assert all(part.text for part in said)
    kinds = [kind for kind, _ in itertools.groupby(said, type)]
    assert kinds in ([], [Thought], [Text], [Thought, Text])
    return tuple("".join(part.text for part in said if isinstance(part, kind)) for kind in (Thought, Text))


@every_tokenizer
@pytest.mark.parametrize("size", [1, 2, 1000])
@pytest.mark.parametrize(
    ("prompt", "reply", "thoughts", "text"),
    [
        ("", "<think>\nhm, so\n</think>\n\nYes.\n", "hm, so", "Yes.\n"),
        ("", " \n<think>a</think>b", "a", "b"),
        ("", "<think>\n\n</think>\n\nb", "", "b"),
        ("", "no thoughts, <think>not here</think>", "", "no thoughts, <think>not here</think>"),
        ("", " <thin", "", " <thin"),
        ("", "<think>a < b</thin k>\n", "a < b</thin k>\n", ""),
        ("", "<think>a </th", "a </th", ""),
        ("", "<think>a</think>b</think><think>c", "a", "b</think><think>c"),
        ("", "<think>", "", ""),
        ("", "<think>a</think> \n", "a", ""),
        ("", "", "", ""),
        ("ask<think>\n", "\nhm\n</think>\nYes", "hm", "Yes"),
        ("ask<think>\n", "<think>hm</think>Yes", "hm", "Yes"),
        ("ask<think>\n", "hm", "hm", ""),
        ("ask<think>\n", " <thi", "<thi", ""),
        ("<think>\n\n</think>\n\n", "Yes", "", "Yes"),
    ],
)
def test_thoughts_are_told_from_text(
    tokenizer: Tokenizer, size: int, prompt: str, reply: str, thoughts: str, text: str
) -> None:
    assert parsed(tokenizer, reply, prompt, size) == (thoughts, text)


@every_tokenizer
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_cuts_do_not_matter(tokenizer: Tokenizer, data: st.DataObject) -> None:
    bits = st.sampled_from(["<think>", "</think>", "<", "</th", "ink>", " ", "\n", "a", "é"])
    reply = "".join(data.draw(st.lists(bits, max_size=12)))
    prompt = data.draw(st.sampled_from(["", "<think>"]))
    whole = parsed(tokenizer, reply, prompt, 1000)
    assert parsed(tokenizer, reply, prompt, data.draw(st.integers(1, 4))) == whole
    spaceless = "".join("".join(whole).split())
    assert len(spaceless) <= len("".join(reply.split()))


@every_tokenizer
def test_nothing_is_kept_back_that_cannot_become_a_tag(tokenizer: Tokenizer) -> None:
    parser = ThinkParser(tokenizer, [])
    assert parser.push(["<"]) == []
    assert parser.push(["b>"]) == [Text("<b>")]
    assert parser.push(["x"]) == [Text("x")]
    parser = ThinkParser(tokenizer, [])
    assert parser.push(["<think>why"]) == [Thought("why")]
    assert parser.push([" not "]) == [Thought(" not")]
    assert parser.push(["now"]) == [Thought(" now")]


def test_long_thought_takes_linear_time() -> None:
    parser = ThinkParser(TOKENIZERS["text"], [])
    parser.push(["<think>"])
    for _ in range(100_000):
        parser.push([" <"])
    assert parser.flush() == [Thought(" <")]


def test_plain_parser_gives_text_and_no_markers() -> None:
    assert PlainParser().push(["a", 5, "b"]) == [Text("a"), Text("b")]
    assert PlainParser().flush() == []


def test_parser_is_chosen_by_what_the_template_says() -> None:
    tokenizer = TOKENIZERS["control"]
    source = "{{ messages[0].content.split('</think>')[-1] }}"
    assert find_parser(source) is ThinkParser
    thinking, plain = ChatTemplate(source, tokenizer), ChatTemplate("{{ messages }}", tokenizer)
    assert isinstance(thinking.parser([]), ThinkParser) and thinking.supports_thinking
    assert isinstance(plain.parser([]), PlainParser) and not plain.supports_thinking
