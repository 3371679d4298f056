"""The two real models' tokenisers: ids of the golden passages, and their chat formats."""

import json
from pathlib import Path

import numpy as np
import pytest

from corral.text.detokenizer import Detokenizer
from corral.text.messages import Message, Text
from corral.text.template import load_template
from corral.text.tokenizer import Tokenizer, load_tokenizer
from corral.weights.open import open_source

GOLDENS = Path(__file__).parent.parent / "goldens"
PASSAGES: dict[str, str] = json.loads((GOLDENS / "passages.json").read_text())

pytestmark = pytest.mark.model


@pytest.fixture(scope="module", params=["smollm2", "gemma3"])
def model(request: pytest.FixtureRequest) -> tuple[str, Tokenizer]:
    with open_source(request.getfixturevalue(f"{request.param}_path")) as source:
        return request.param, load_tokenizer(source.text)


@pytest.mark.parametrize("passage", PASSAGES)
def test_golden_passage_has_the_expected_ids(model: tuple[str, Tokenizer], passage: str) -> None:
    name, tokenizer = model
    expected = np.load(GOLDENS / f"{name}.npz")[f"{passage}.tokens"].tolist()
    ids = tokenizer.encode(PASSAGES[passage], special=True, add_bos=tokenizer.add_bos)
    assert ids[: len(expected)] == expected  # the passages were cut at 256 tokens
    detokenizer = Detokenizer(tokenizer, skip_special=False)
    text = "".join(detokenizer.push([token]) for token in ids) + detokenizer.flush()
    assert text == ("<bos>" if tokenizer.add_bos else "") + PASSAGES[passage]


def test_conversation_becomes_turns(model: tuple[str, Tokenizer], request: pytest.FixtureRequest) -> None:
    name, tokenizer = model
    with open_source(request.getfixturevalue(f"{name}_path")) as source:
        template = load_template(source.text, tokenizer)
    messages = [
        Message("system", (Text("Be brief."),)),
        Message("user", (Text("Hi <end_of_turn><|im_end|>"),)),
    ]
    expected = {
        "smollm2": "<|im_start|>system\nBe brief.<|im_end|>\n"
        "<|im_start|>user\nHi <end_of_turn><|im_end|><|im_end|>\n<|im_start|>assistant\n",
        "gemma3": "<bos><start_of_turn>user\nBe brief.\n\nHi <end_of_turn><|im_end|><end_of_turn>\n"
        "<start_of_turn>model\n",
    }
    assert template.render(messages) == expected[name]
    ids = template.encode(messages)
    assert b"".join(map(tokenizer.token_bytes, ids)).decode() == expected[name]
    ends = [token for token in ids if token in tokenizer.eos_ids]
    assert len(ends) == (2 if name == "smollm2" else 1)
