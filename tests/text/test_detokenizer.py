"""The detokeniser gives, piece by piece, what decoding the whole gives."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import gguf_files
from corral.text.detokenizer import Detokenizer
from corral.text.tokenizer import Tokenizer, load_tokenizer

TOKENIZERS = [
    load_tokenizer(gguf_files.text_assets(metadata))
    for metadata in (gguf_files.bpe_tokenizer(), gguf_files.spm_tokenizer())
]
both = pytest.mark.parametrize("tokenizer", TOKENIZERS, ids=["bpe", "spm"])


def pieces(tokenizer: Tokenizer, ids: list[int], skip_special: bool = True) -> list[str]:
    detokenizer = Detokenizer(tokenizer, skip_special=skip_special)
    return [*(detokenizer.push([token]) for token in ids), detokenizer.flush()]


@both
@settings(max_examples=300, deadline=None)
@given(ids=st.lists(st.integers(0, 400), max_size=60), skip_special=st.booleans())
def test_pushes_joined_equal_the_whole_decoded(
    tokenizer: Tokenizer, ids: list[int], skip_special: bool
) -> None:
    shown = [i for i in ids if not (skip_special and tokenizer.is_special(i))]
    whole = b"".join(map(tokenizer.token_bytes, shown)).decode(errors="replace")
    assert "".join(pieces(tokenizer, ids, skip_special)) == whole
    at_once = Detokenizer(tokenizer, skip_special=skip_special)
    assert at_once.push(ids) + at_once.flush() == whole


@both
@settings(max_examples=100, deadline=None)
@given(text=st.text(st.sampled_from("aé日🙂 \n"), max_size=20))
def test_text_comes_in_whole_characters(tokenizer: Tokenizer, text: str) -> None:
    parts = pieces(tokenizer, tokenizer.encode(text, special=False, add_bos=False))
    assert "".join(parts) == text and not any("\ufffd" in part for part in parts)


@both
def test_unfinished_character_is_held_back_then_replaced(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("🙂", special=False, add_bos=False)
    assert pieces(tokenizer, ids) == ["", "", "", "🙂", ""]
    assert pieces(tokenizer, ids[:3]) == ["", "", "", "\ufffd"]


@both
def test_special_tokens_are_left_out_unless_wanted(tokenizer: Tokenizer) -> None:
    end = next(iter(sorted(tokenizer.eos_ids)))
    ids = [end, *tokenizer.encode("the", special=False, add_bos=False)]
    assert "".join(pieces(tokenizer, ids)) == "the"
    assert "".join(pieces(tokenizer, ids, skip_special=False)) == tokenizer.token_text(end) + "the"


def test_leading_space_of_a_reply_is_kept() -> None:
    tokenizer = TOKENIZERS[1]
    ids = tokenizer.encode(" the the", special=False, add_bos=False)
    assert pieces(tokenizer, ids) == [" the", " the", ""]
