"""Tokenisers of folders, compared with the `tokenizers` library itself."""

import contextlib
import json
import random
from typing import Any

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

import gguf_files
from corral.errors import CorralError, CorruptModel, UnsupportedModel
from corral.text.spm import SentencePieceBPE
from corral.text.tokenizer import Tokenizer, load_tokenizer
from corral.text.tokenizer_json import LibraryBPE
from corral.weights.open import open_source
from tokenizer_json import METASPACE, PREPEND, REPLACE, as_assets, bos_template, bytes_json, pieces_json

CORPUS = [
    "the sheep and the horses in the corral  are waiting,   for the rain",
    "Straße, naïve café: ﬁancé Ångström e\u0301 が\u3099 한국어 हिन्दी ไทย العربية עברית Ελλάδα Ёлка",
    "def f(x):\n\tif x <= 0x1F:\n\t\treturn [i for i in range(x)]  # ok\n\n\n\n    pass\r\n",
    "🙂 👩‍👩‍👧‍👦 🇩🇪 \u200d \ufe0f ✊🏽",
    "a\r\nb\r\rc \n \n\t \u00a0\u2003 end   ",
    "\0\1\x1b[0m \x7f \ufffd \uffff",
    "  leading and ▁literal▁▁ ▁ and trailing  ",
    "<|im_start|>user\n<bos>hi<end_of_turn><|im_end|> <b> <0x0A> <unk>",
    "1234567890 3.14 10,000 ½ ² ①",
    "",
    " ",
    "▁",
    "x" * 300 + " " * 300 + "\n" * 40,
]


def compare(tokenizer: Tokenizer, library: tokenizers.Tokenizer, text: str) -> None:
    """The same ids, with control tokens and without."""
    for special in (True, False):
        library.encode_special_tokens = not special
        expected = library.encode(text, add_special_tokens=False).ids
        assert tokenizer.encode(text, special=special, add_bos=False) == expected, (special, text)


def both(definition: dict[str, Any], **options: Any) -> tuple[Tokenizer, tokenizers.Tokenizer]:
    tokenizer = load_tokenizer(as_assets(definition, **options))
    return tokenizer, tokenizers.Tokenizer.from_str(json.dumps(definition))


def scheme(tokenizer: Tokenizer) -> type:
    return type(tokenizer._scheme)


BPE = gguf_files.text_assets(gguf_files.bpe_tokenizer())
SPM = gguf_files.text_assets(gguf_files.spm_tokenizer())
NFC = {"type": "NFC"}
ODD_TOKENS = [
    ("<l>", {"lstrip": True, "special": True}),
    ("<r>", {"rstrip": True, "special": True}),
    ("word", {"single_word": True, "special": False}),
]


def with_odd_tokens(definition: dict[str, Any]) -> dict[str, Any]:
    size = max(definition["model"]["vocab"].values()) + 1
    odd = [
        {
            "id": size + i,
            "content": text,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
        }
        | flags
        for i, (text, flags) in enumerate(ODD_TOKENS)
    ]
    return {**definition, "added_tokens": [*definition["added_tokens"], *odd]}


DEFINITIONS = {
    "bytes": (bytes_json(BPE), LibraryBPE),
    "bytes, normalised": (bytes_json(BPE, normalizer=NFC), LibraryBPE),
    "bytes, odd tokens": (with_odd_tokens(bytes_json(BPE, normalizer=NFC)), LibraryBPE),
    "pieces": (pieces_json(SPM), SentencePieceBPE),
    "pieces, merges as texts": (pieces_json(SPM, pairs=False), SentencePieceBPE),
    "pieces, odd tokens": (with_odd_tokens(pieces_json(SPM)), SentencePieceBPE),
    "pieces, a space before": (
        pieces_json(SPM, normalizer={"type": "Sequence", "normalizers": [PREPEND, REPLACE]}),
        SentencePieceBPE,
    ),
    "pieces, split at spaces": (
        pieces_json(
            SPM,
            pre_tokenizer={
                "type": "Split",
                "pattern": {"String": " "},
                "behavior": "MergedWithPrevious",
                "invert": False,
            },
        ),
        SentencePieceBPE,
    ),
    **{
        f"pieces, metaspace {when}": (
            pieces_json(SPM, normalizer=None, pre_tokenizer={**METASPACE, "prepend_scheme": when}),
            SentencePieceBPE,
        )
        for when in ("first", "always", "never")
    },
    "pieces, cut into words": (
        pieces_json(
            SPM, normalizer=None, pre_tokenizer={**METASPACE, "split": True, "prepend_scheme": "always"}
        ),
        LibraryBPE,
    ),
}
LOADED = {name: (*both(definition), kind) for name, (definition, kind) in DEFINITIONS.items()}


@pytest.mark.parametrize("name", DEFINITIONS)
def test_ids_equal_the_librarys_over_the_corpus(name) -> None:
    tokenizer, library, kind = LOADED[name]
    assert scheme(tokenizer) is kind
    for text in [*CORPUS, "\n".join(CORPUS), "a <l> b <r>  c<l><r> sword word words co\u030b x"]:
        compare(tokenizer, library, text)


ALPHABET = st.characters(exclude_categories=["Cs"]) | st.sampled_from("<|> \n▁\0o\u030bthe")
TEXTS = st.lists(
    st.sampled_from(["<|im_end|>", "<bos>", "<l>", "\n\n", "word", " the"]) | st.text(ALPHABET, max_size=8)
)


@pytest.mark.parametrize("name", DEFINITIONS)
@settings(max_examples=60, deadline=None)
@given(pieces=TEXTS)
def test_ids_equal_the_librarys_for_any_text(name, pieces) -> None:
    compare(LOADED[name][0], LOADED[name][1], "".join(pieces))


@pytest.mark.parametrize("name", [name for name in DEFINITIONS if "normal" not in name and "odd" not in name])
def test_token_bytes_spell_the_text(name) -> None:
    tokenizer = LOADED[name][0]
    for text in CORPUS:
        ids = tokenizer.encode(text, special=False, add_bos=False)
        spelt = b"".join(map(tokenizer.token_bytes, ids)).decode()
        expected = text.replace("▁", " ") if name.startswith("pieces") else text
        if any(word in name for word in ("before", "always", "first", "words")):  # each piece gets a space
            spelt, expected = spelt.replace(" ", ""), expected.replace(" ", "")
        assert spelt == expected


def test_a_vocabulary_that_was_trained_as_bpe_is_left_to_the_library() -> None:
    """One merge a piece: SentencePiece's way would merge pairs that are not in the list."""
    definition = pieces_json(SPM)
    first = {}
    for left, right in definition["model"]["merges"]:
        first.setdefault(left + right, [left, right])
    assert len(first) < len(definition["model"]["merges"])
    definition["model"]["merges"] = list(first.values())
    tokenizer, library = both(definition)
    assert scheme(tokenizer) is LibraryBPE
    for text in CORPUS:
        compare(tokenizer, library, text)


def test_parts_between_control_tokens_lose_the_white_space_that_those_swallow() -> None:
    tokenizer, library, _ = LOADED["bytes, odd tokens"]
    library.encode_special_tokens = False
    left, right = (library.token_to_id(text) for text in ("<l>", "<r>"))
    ids = tokenizer.encode_parts(["a  ", left, right, "  b"], add_bos=False)
    assert ids == library.encode("a  <l><r>  b", add_special_tokens=False).ids


@pytest.mark.parametrize(
    ("post", "flag", "expected"),
    [(None, None, False), (None, True, True), ("<bos>", None, True), ("<bos>", False, False)],
)
def test_bos_is_the_settings_or_else_the_post_processors(post, flag, expected) -> None:
    definition = pieces_json(SPM, post_processor=bos_template(post, 2) if post else None)
    vocabulary = {} if flag is None else {"add_bos_token": flag}
    tokenizer, _ = both(definition, vocabulary=vocabulary, names={"bos_token": "<bos>", "eos_token": "<eos>"})
    assert (tokenizer.add_bos, tokenizer.bos_id, tokenizer.eos_id) == (expected, 2, 1)
    assert tokenizer.encode("a", special=True, add_bos=True).count(2) == 1


def test_several_end_tokens_end_a_reply() -> None:
    tokenizer, _ = both(bytes_json(BPE), vocabulary={"end_ids": [0, 7]}, names={"eos_token": "<|im_end|>"})
    assert tokenizer.eos_ids == {0, 2, 7} and tokenizer.names == {"eos_token": "<|im_end|>"}


def changed(base: dict[str, Any], **model: Any) -> dict[str, Any]:
    return {**base, "model": {**base["model"], **model}}


BYTES, PIECES = bytes_json(BPE), pieces_json(SPM)
WRONG: dict[str, tuple[Any, type[CorralError]]] = {
    "nothing": ({}, CorruptModel),
    "an array": ([], CorruptModel),
    "no model": ({**BYTES, "model": None}, CorruptModel),
    "unigram": (changed(BYTES, type="Unigram"), UnsupportedModel),
    "no merges": ({**BYTES, "model": {"type": "BPE", "vocab": {}}}, CorruptModel),
    "no tokens": ({**changed(BYTES, vocab={}), "added_tokens": []}, CorruptModel),
    "a negative id": (changed(BYTES, vocab={"a": -1}), CorruptModel),
    "a huge id": (changed(BYTES, vocab={"a": 1 << 60}), CorruptModel),
    "merges of nothing": (changed(BYTES, merges=["zq qz"]), CorruptModel),
    "merges that are none": (changed(BYTES, merges=[1]), CorruptModel),
    "a rule that is none": ({**BYTES, "normalizer": "NFC"}, CorruptModel),
    "an unheard-of rule": ({**BYTES, "normalizer": {"type": "Shout"}}, CorruptModel),
    "a bad expression": (
        {**BYTES, "pre_tokenizer": {"type": "Split", "pattern": {"Regex": "("}, "behavior": "Isolated"}},
        CorruptModel,
    ),
    "a long rule": ({**BYTES, "normalizer": {"type": "x" * (2 << 20)}}, UnsupportedModel),
    "no bytes": ({**changed(PIECES, byte_fallback=False)}, UnsupportedModel),
    "first word in words": (
        {**PIECES, "normalizer": None, "pre_tokenizer": {**METASPACE, "split": True}},
        UnsupportedModel,
    ),
    "deep": (None, CorruptModel),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_used_is_a_typed_error(case) -> None:
    definition, error = WRONG[case]
    assets = as_assets(definition)
    if case == "deep":
        assets = as_assets({})
        object.__setattr__(assets, "tokenizer_json", b'{"model":' + b"[" * 1_000_000)
    with pytest.raises(error, match=r"tokenizer\.json|vocabulary|merges"):
        load_tokenizer(assets)


def test_random_damage_is_a_corral_error_or_works() -> None:
    choices = random.Random(1)
    junk = [None, 0, -1, 1 << 40, "", "x y", True, 0.5, [], ["a"], {}, {"type": "BPE"}, {"type": None}]
    for _ in range(200):
        definition = json.loads(json.dumps(choices.choice([BYTES, PIECES])))
        for _ in range(choices.randint(1, 3)):
            inside = definition if choices.random() < 0.4 else definition.get("model") or definition
            if isinstance(inside, dict) and inside:
                inside[choices.choice([*inside])] = choices.choice(junk)
        with contextlib.suppress(CorralError):
            load_tokenizer(as_assets(definition)).encode("the end\n🙂", special=True, add_bos=True)


@pytest.mark.model
@pytest.mark.parametrize("name", ["smollm2", "gemma3"])
def test_real_vocabulary_in_a_folder_gives_the_ids_of_the_library_and_of_its_gguf(name, request) -> None:
    with open_source(request.getfixturevalue(f"{name}_path")) as source:
        definition = bytes_json(source.text) if name == "smollm2" else pieces_json(source.text)
        original = load_tokenizer(source.text)
        tokenizer, library = both(definition)
    assert scheme(tokenizer) is (LibraryBPE if name == "smollm2" else SentencePieceBPE)
    for text in [*CORPUS, "\n".join(CORPUS)]:
        compare(tokenizer, library, text)
        if "▁" not in text and " " * 32 not in text:  # a GGUF cuts long runs of spaces otherwise
            ids = tokenizer.encode(text, special=True, add_bos=False)
            assert ids == original.encode(text, special=True, add_bos=False)
            assert [*map(tokenizer.token_bytes, ids)] == [*map(original.token_bytes, ids)]
