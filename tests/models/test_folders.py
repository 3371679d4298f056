"""Models of folders compute what the same weights in a GGUF file do."""

from pathlib import Path

import numpy as np
import pytest
from checkpoint import rewrite
from running import logprobs, random_tokens

from conversations import user
from corral.text.template import load_template
from corral.text.tokenizer import load_tokenizer
from corral.weights.open import open_source
from gguf_files import tiny_gemma3, tiny_llama
from hf_export import export_folder

MODELS = {"llama": tiny_llama, "gemma3": tiny_gemma3}
TOKENS = random_tokens(50, 300)


@pytest.mark.parametrize("shards", [1, 2])
@pytest.mark.parametrize("family", MODELS)
def test_float32_folder_has_the_log_probs_of_the_same_weights_in_a_file(
    tmp_path: Path, family: str, shards: int
) -> None:
    path = rewrite(MODELS[family](tmp_path / "m.gguf"))  # as float32
    folder = export_folder(path, tmp_path / "folder", shards=shards)
    np.testing.assert_allclose(logprobs(folder, TOKENS), logprobs(path, TOKENS), rtol=0, atol=2e-5)


@pytest.mark.parametrize("family", MODELS)
def test_text_of_a_folder_is_that_of_the_file(tmp_path: Path, family: str) -> None:
    path = MODELS[family](tmp_path / "m.gguf")
    folder = export_folder(path, tmp_path / "folder")
    messages = user("the sheep <|im_end|> and\nthe <bos> horses")
    encoded = []
    for each in (path, folder):
        with open_source(each) as source:
            tokenizer = load_tokenizer(source.text)
            encoded.append(
                (
                    load_template(source.text, tokenizer).encode(messages),
                    tokenizer.eos_ids,
                    tokenizer.names["eos_token"],
                )
            )
    assert encoded[0] == encoded[1]
