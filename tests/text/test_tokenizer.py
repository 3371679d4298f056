"""Text to ids and back over tiny vocabularies; test_real_models.py and test_llama_cpp.py have real ones."""

import contextlib
import random
import struct
import sys
from array import array
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import gguf_files
from corral.errors import CorralError, CorruptModel, InvalidRequest, UnsupportedModel
from corral.text.pretokenizers import PRETOKENIZERS
from corral.text.spm import _field, _pieces
from corral.text.tokenizer import Tokenizer
from corral.text.tokenizer import load_tokenizer as load
from corral.weights.open import open_source


def load_tokenizer(metadata: dict[str, Any]) -> Tokenizer:
    return load(gguf_files.text_assets(metadata))


BPE, SPM = gguf_files.bpe_tokenizer(), gguf_files.spm_tokenizer()
METADATA = {"bpe": BPE, "spm": SPM}
TOKENIZERS = {name: load_tokenizer(metadata) for name, metadata in METADATA.items()}
both = pytest.mark.parametrize("tokenizer", TOKENIZERS.values(), ids=TOKENIZERS.keys())


def changed(base: dict[str, Any], **values: Any) -> dict[str, Any]:
    """Metadata with other values under tokenizer.ggml; None removes."""
    metadata = {**base, **{f"tokenizer.ggml.{key}": value for key, value in values.items()}}
    return {key: value for key, value in metadata.items() if value is not None}


def id_of(tokenizer: Tokenizer, text: str) -> int:
    return next(i for i in range(tokenizer.vocab_size) if tokenizer.token_text(i) == text)


def plain(tokenizer: Tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text, special=False, add_bos=False)


def decoded(tokenizer: Tokenizer, ids: list[int]) -> str:
    return b"".join(map(tokenizer.token_bytes, ids)).decode()


@both
@settings(max_examples=200, deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from("<|> \n▁\0"), max_size=60))
def test_encode_then_bytes_gives_the_text_back(tokenizer: Tokenizer, text: str) -> None:
    expected = text.replace("▁", " ") if tokenizer is TOKENIZERS["spm"] else text
    assert decoded(tokenizer, plain(tokenizer, text)) == expected


@both
def test_merges_are_applied(tokenizer: Tokenizer) -> None:
    assert len(plain(tokenizer, " the the the")) == 3


@both
@pytest.mark.parametrize("text", ["\ud800", "ok \udfff ok", "\ud83d\ude42"])
def test_lone_surrogate_is_an_invalid_request(tokenizer: Tokenizer, text: str) -> None:
    for special in (False, True):
        with pytest.raises(InvalidRequest, match="surrogate"):
            tokenizer.encode(text, special=special, add_bos=False)
    with pytest.raises(InvalidRequest, match="surrogate"):
        tokenizer.encode_parts([text], add_bos=False)


def test_special_text_becomes_a_token_only_when_asked() -> None:
    tokenizer = TOKENIZERS["bpe"]
    end = id_of(tokenizer, "<|im_end|>")
    text = "the <|im_end|>the"
    assert tokenizer.encode(text, special=True, add_bos=False).count(end) == 1
    ids = plain(tokenizer, text)
    assert end not in ids and decoded(tokenizer, ids) == text


def test_user_defined_token_is_found_either_way() -> None:
    tokenizer = TOKENIZERS["spm"]
    double = id_of(tokenizer, "\n\n")
    for special in (False, True):
        ids = tokenizer.encode("a\n\n\nb", special=special, add_bos=False)
        assert ids == [id_of(tokenizer, t) for t in ("a", "\n\n", "\n", "b")]
    assert tokenizer.token_bytes(double) == b"\n\n"


def test_control_token_is_never_built_by_merging() -> None:
    """llama.cpp would merge "<" + "b" + ">" to a control token that has the text of a merge."""
    metadata = changed(SPM)
    tokens, types = list(SPM["tokenizer.ggml.tokens"]), list(SPM["tokenizer.ggml.token_type"])
    tokens += ["<b", "<b>"]
    types += [gguf_files.NORMAL, gguf_files.CONTROL]
    scores = [*SPM["tokenizer.ggml.scores"], -1.0, -2.0]
    tokenizer = load_tokenizer(changed(metadata, tokens=tokens, token_type=types, scores=scores))
    assert plain(tokenizer, "<b>") == [id_of(tokenizer, "<b"), id_of(tokenizer, ">")]


def test_of_overlapping_special_tokens_the_first_then_longest_wins() -> None:
    tokens = [*BPE["tokenizer.ggml.tokens"], "<|a", "<|a|>", "|>x"]
    types = [*BPE["tokenizer.ggml.token_type"], 3, 3, 3]
    tokenizer = load_tokenizer(changed(BPE, tokens=tokens, token_type=types))
    ids = tokenizer.encode("<|a|>x<|a|x", special=True, add_bos=False)
    assert [tokenizer.token_text(i) for i in ids] == ["<|a|>", "x", "<|a", "|", "x"]


@pytest.mark.parametrize("prefix", [False, True])
def test_space_prefix_goes_before_text_that_begins_or_follows_a_special_token(prefix: bool) -> None:
    tokenizer = load_tokenizer(changed(SPM, add_space_prefix=prefix))
    space = " " if prefix else ""
    ids = tokenizer.encode("a<end_of_turn>b", special=True, add_bos=False)
    assert decoded(tokenizer, ids) == f"{space}a<end_of_turn>{space}b"
    assert plain(tokenizer, "") == []


def test_bos_is_added_when_asked() -> None:
    tokenizer = TOKENIZERS["spm"]
    assert tokenizer.add_bos and not TOKENIZERS["bpe"].add_bos
    assert tokenizer.encode("", special=False, add_bos=True) == [tokenizer.bos_id] == [2]
    assert load_tokenizer(changed(BPE, bos_token_id=None)).encode("", special=True, add_bos=True) == []


def test_byte_fallback_spells_unknown_characters() -> None:
    tokenizer = TOKENIZERS["spm"]
    assert [tokenizer.token_text(i) for i in plain(tokenizer, "🙂")] == [
        "<0xF0>",
        "<0x9F>",
        "<0x99>",
        "<0x82>",
    ]
    assert tokenizer.token_bytes(id_of(tokenizer, "<0x0A>")) == b"\n"


def test_without_byte_tokens_an_unknown_character_is_the_unknown_token() -> None:
    tokens, types = SPM["tokenizer.ggml.tokens"], SPM["tokenizer.ggml.token_type"]
    keep = [i for i, kind in enumerate(types) if kind != gguf_files.BYTE]
    columns = {key: [SPM[f"tokenizer.ggml.{key}"][i] for i in keep] for key in ("scores", "token_type")}
    tokenizer = load_tokenizer(changed(SPM, tokens=[tokens[i] for i in keep], **columns))
    assert plain(tokenizer, "a☃b") == [
        id_of(tokenizer, "a"),
        id_of(tokenizer, "<unk>"),
        id_of(tokenizer, "b"),
    ]


def test_end_tokens_are_the_declared_ones_and_the_well_known_texts() -> None:
    assert {TOKENIZERS["spm"].token_text(i) for i in TOKENIZERS["spm"].eos_ids} == {"<eos>", "<end_of_turn>"}
    tokens = [*BPE["tokenizer.ggml.tokens"], "<|eot_id|>", "</s>", "<|end|>", "<|return|>", "<|call|>"]
    count = len(tokens)
    types = [*BPE["tokenizer.ggml.token_type"], 1, 4, 3, 3, 3]
    tokenizer = load_tokenizer(changed(BPE, tokens=tokens, token_type=types, eom_token_id=7))
    # <|end|> does not end a reply where <|return|> and <|call|> do; "</s>" is HTML unless a control token.
    assert tokenizer.eos_ids == {0, 2, 7, count - 5, count - 2, count - 1}
    assert tokenizer.is_special(count - 5) and not tokenizer.is_special(count - 4)


def test_phi3_control_tokens_swallow_the_white_space_after_them() -> None:
    tokenizer = load_tokenizer({**SPM, "general.name": "Phi-3 mini"})
    ids = tokenizer.encode("<end_of_turn> \n a", special=True, add_bos=False)
    assert ids == [id_of(tokenizer, "<end_of_turn>"), id_of(tokenizer, "a")]
    assert tokenizer.encode_parts([ids[0], " \n a"], add_bos=False) == ids


@both
def test_ids_beyond_the_vocabulary_stand_for_nothing(tokenizer: Tokenizer) -> None:
    for token in (-1, tokenizer.vocab_size, 10**9):
        assert tokenizer.token_bytes(token) == b"" and not tokenizer.is_special(token)


@both
def test_very_long_words_are_encoded_whole(tokenizer: Tokenizer) -> None:
    for text in (
        "a" * 100_000,
        " " * 100_000,
        "\n" * 100_000,
        "🙂" * 20_000,
        "<" * 100_000,
        "<|im_end|" * 10_000,
    ):
        assert decoded(tokenizer, tokenizer.encode(text, special=True, add_bos=False)) == text


def test_vocabulary_from_a_file_outlives_it(tmp_path: Any) -> None:
    for name, metadata in METADATA.items():
        path = gguf_files.write_gguf(tmp_path / name, {"general.architecture": "llama", **metadata})
        with open_source(path) as source:
            tokenizer = load(source.text)
        text = "the sheep <|im_end|> and"
        assert plain(tokenizer, text) == plain(TOKENIZERS[name], text)
        assert decoded(tokenizer, plain(tokenizer, text)) == text


@pytest.mark.parametrize("kind", PRETOKENIZERS)
def test_every_pretokenizer_loads_and_loses_no_text(kind: str) -> None:
    tokenizer = load_tokenizer(changed(BPE, pre=kind))
    text = " It's  1234567 Straße, HelloWorld'LL!?\r\n\n\tपानी 日本語 <br>  x \u3000 end  "
    assert decoded(tokenizer, plain(tokenizer, text)) == text


@pytest.mark.parametrize(
    ("kind", "text", "pieces"),
    [
        ("gpt-2", "it's 123 a  b", ["it", "'s", " 123", " a", " ", " b"]),
        ("smollm", "it's 123", ["it", "'s", " ", "1", "2", "3"]),
        ("llama-bpe", "It'S 1234\r\n x", ["It", "'S", " ", "123", "4", "\r\n", " x"]),
        ("qwen2", "It'S 1234\r\n x", ["It", "'S", " ", "1", "2", "3", "4", "\r\n", " x"]),
        ("gpt-4o", "HelloWorld's 1234", ["Hello", "World's", " ", "123", "4"]),
        ("tekken", "HelloWorld 12", ["Hello", "World", " ", "1", "2"]),
        ("default", "a!=b 1234", ["a", "!=", "b", " ", "123", "4"]),
        ("deepseek-v3", "ab日本12345", ["ab", "日本", "123", "45"]),
    ],
)
def test_pretokenizer_cuts_words(kind: str, text: str, pieces: list[str]) -> None:
    """Words do not merge with each other: where every pair may merge, the tokens are the words."""
    letters = dict(zip(range(256), gguf_files.byte_characters(), strict=True))
    tokens, merges = list(letters.values()), []
    for left in (*pieces, text):  # the whole text may merge too, if the cuts let it
        units = [letters[byte] for byte in left.encode()]
        for i in range(1, len(units)):
            merges.append(f"{''.join(units[:i])} {units[i]}")
            tokens.append("".join(units[: i + 1]))
    tokens = list(dict.fromkeys(tokens))
    metadata = changed(BPE, pre=kind, tokens=tokens, merges=merges, token_type=[1] * len(tokens))
    tokenizer = load_tokenizer(metadata)
    assert [decoded(tokenizer, [i]) for i in plain(tokenizer, text)] == pieces


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"model": "bert"}, "bert"),
        ({"model": None}, "None"),
        ({"model": 3}, "3"),
        ({"pre": "new-kind"}, "new-kind"),
    ],
)
def test_unknown_kinds_are_unsupported_by_name(values: dict[str, Any], named: str) -> None:
    with pytest.raises(UnsupportedModel, match=rf"'{named}' is not supported; supported are .*(gpt2|qwen2)"):
        load_tokenizer(changed(BPE, **values))


BPE_COUNT, SPM_COUNT = len(BPE["tokenizer.ggml.tokens"]), len(SPM["tokenizer.ggml.tokens"])
CORRUPT: list[tuple[dict[str, Any], dict[str, Any]]] = [
    (BPE, {"tokens": None}),
    (BPE, {"tokens": []}),
    (BPE, {"tokens": 7}),
    (BPE, {"tokens": "abc"}),
    (BPE, {"tokens": [1, 2]}),
    (BPE, {"tokens": ["a", "a"]}),
    (BPE, {"tokens": [*BPE["tokenizer.ggml.tokens"], "<|im_end|>"]}),
    (BPE, {"merges": None}),
    (BPE, {"merges": 5}),
    (BPE, {"merges": [5]}),
    (BPE, {"merges": ["ab"]}),
    (BPE, {"merges": ["a "]}),
    (BPE, {"merges": [""]}),
    (BPE, {"merges": ["a nonsense"]}),
    (BPE, {"merges": ["z q"]}),  # the two are tokens, "zq" is not
    (BPE, {"token_type": [1]}),
    (BPE, {"token_type": [300] * BPE_COUNT}),
    (BPE, {"token_type": [-1] * BPE_COUNT}),
    (BPE, {"token_type": [7] * BPE_COUNT}),
    (BPE, {"token_type": ["a"] * BPE_COUNT}),
    (BPE, {"token_type": 3}),
    (BPE, {"eos_token_id": BPE_COUNT}),
    (BPE, {"bos_token_id": -1}),
    (BPE, {"bos_token_id": "1"}),
    (BPE, {"eot_token_id": 2**32 - 1}),
    (BPE, {"add_bos_token": 5}),
    (SPM, {"scores": [0.0] * (SPM_COUNT - 1)}),
    (SPM, {"scores": [float("nan")] * SPM_COUNT}),
    (SPM, {"scores": ["0"] * SPM_COUNT}),
    (SPM, {"scores": 1.0}),
    (SPM, {"token_type": [1] * (SPM_COUNT + 1)}),
]


@pytest.mark.parametrize(("base", "values"), CORRUPT, ids=lambda value: str(value)[:60])
def test_corrupt_vocabulary_is_an_error_that_says_so(base: dict[str, Any], values: dict[str, Any]) -> None:
    with pytest.raises(CorruptModel):
        load_tokenizer(changed(base, **values))


def test_random_damage_is_a_corral_error_or_works() -> None:
    choices = random.Random(1)
    for _ in range(150):
        base = dict(choices.choice([BPE, SPM]))
        for key in choices.sample([k for k in base if k.startswith("tokenizer.ggml.")], 2):
            base[key] = damage(base[key], choices)
        with contextlib.suppress(CorralError):
            load_tokenizer(base).encode("the end\n🙂", special=True, add_bos=True)


def damage(value: Any, choices: random.Random) -> Any:
    junk = [0, -1, 2**40, "", "x y", True, 0.5, [], ["a"], [0], array("i", [1, 2])]
    if isinstance(value, list) and choices.random() < 0.8:
        value = list(value)
        for _ in range(choices.randint(1, 5)):
            value[choices.randrange(len(value))] = choices.choice(
                [*value[:50], "", "a b", " ", "\0", 5, 6, 0, -3]
            )
        return value[: choices.choice([len(value), len(value) // 2])]
    return choices.choice(junk)


def test_empty_tokens_keep_their_places() -> None:
    tokens = ["", *BPE["tokenizer.ggml.tokens"][1:-1], ""]
    tokenizer = load_tokenizer(changed(BPE, tokens=tokens, merges=[]))
    assert tokenizer.token_text(0) == "[EMPTY_0]" and tokenizer.vocab_size == len(tokens)


def test_loading_imports_no_numpy() -> None:
    """The API process stays small."""
    import subprocess

    modules = "corral.text.template, corral.text.tokenizer_json, corral.weights.hf_folder"
    code = f"import sys, {modules}; sys.exit('numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_pieces_are_serialised_as_one_by_one() -> None:
    """The strided writing of text/spm.py against the plain one: a message for each token."""
    texts = [b"a", "é".encode() * 70, b"x" * 20_000, b"<0x0A>"]
    types, scores = bytearray([1, 3, 5, 6]), array("f", [0.5, -1.0, 1e6, -0.0])

    def plain(text: bytes, kind: int, score: float) -> bytes:
        return _field(1, _field(1, text) + b"\x15" + struct.pack("<f", score) + b"\x18" + bytes([kind]))

    assert _pieces(texts, types, scores) == b"".join(map(plain, texts, types, scores))
