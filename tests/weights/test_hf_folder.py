"""A Hugging Face folder as a ModelSource."""

import json
from typing import Any

import numpy as np
import pytest

import hf_folders
from corral.errors import CorruptModel, UnsupportedModel
from corral.weights.open import open_source
from corral.weights.source import Constant, Part, Published

CONFIG = {
    "architectures": ["TinyForCausalLM"],
    "num_hidden_layers": 2,
    "hidden_size": 4,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-6,
    "vocab_size": 3,
    "tie_word_embeddings": False,
}
EMBEDDING = np.arange(12, dtype=np.float32).reshape(3, 4)
TENSORS = {
    "model.embed_tokens.weight": EMBEDDING,
    **{f"model.layers.{i}.self_attn.q_proj.weight": np.full((4, 4), i, np.float32) for i in range(2)},
    "model.norm.weight": np.ones(4, np.float32),
    "lm_head.weight": -EMBEDDING,
}
PUBLISHED = Published(
    tensors={
        "token_embd.weight": "model.embed_tokens.weight",
        "blk.{i}.attn_q.weight": "model.layers.{i}.self_attn.q_proj.weight",
        "output_norm.weight": "model.norm.weight",
        "output.weight": "lm_head.weight",
    }
)


def folder(tmp_path, config: dict[str, Any] | None = None, tensors=None, **options):
    return hf_folders.write_folder(tmp_path / "tiny", CONFIG | (config or {}), tensors or TENSORS, **options)


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_tensors_have_canonical_names_and_their_values(tmp_path, shards, dtype) -> None:
    with open_source(folder(tmp_path, shards=shards, dtype=dtype)) as source:
        assert source.architecture == "TinyForCausalLM" and source.format == "safetensors"
        named = source.named(PUBLISHED)
        assert named.tensors["blk.1.attn_q.weight"].shape == (4, 4)
        for name, theirs in (("token_embd.weight", EMBEDDING), ("blk.1.attn_q.weight", np.ones((4, 4)))):
            tensor = named.tensor(name)
            assert (tensor.type_name, tensor.shape) == (dtype, theirs.shape)
            np.testing.assert_array_equal(
                tensor.dequantize(), theirs
            )  # small integers are exact in all types
            named.release(name)
        assert named.tensor("output_norm.weight").shape == (1, 4)
        with pytest.raises(CorruptModel, match=r"'blk.7.attn_q.weight' is missing"):
            named.tensor("blk.7.attn_q.weight")


def test_a_tied_head_is_the_embedding_even_where_a_copy_is_stored(tmp_path) -> None:
    with open_source(folder(tmp_path, {"tie_word_embeddings": True})) as source:
        assert "output.weight" not in source.named(PUBLISHED).tensors


def test_an_untied_head_that_is_missing_is_refused(tmp_path) -> None:
    tensors = {name: values for name, values in TENSORS.items() if name != "lm_head.weight"}
    with (
        open_source(folder(tmp_path, tensors=tensors)) as source,
        pytest.raises(CorruptModel, match="missing"),
    ):
        source.named(PUBLISHED)


def test_multimodal_folder_gives_its_language_model(tmp_path) -> None:
    inner = {key: value for key, value in CONFIG.items() if key != "architectures"}
    config = {
        "architectures": ["TinyForConditionalGeneration"],
        "text_config": inner,
        "vision_config": {"hidden_size": 9},
    }
    tensors = {f"language_model.{name}": values for name, values in TENSORS.items()}
    tensors["vision_tower.patch.weight"] = np.ones((2, 2), np.float32)
    with open_source(hf_folders.write_folder(tmp_path / "m", config, tensors)) as source:
        named = source.named(PUBLISHED)
        assert named.fields.integer("embedding_length", 100) == 4
        assert sorted(named.tensors) == [
            *("blk.0.attn_q.weight", "blk.1.attn_q.weight", "output.weight", "output_norm.weight"),
            *("token_embd.weight", "v.patch.weight"),
        ]


def test_experts_are_stacked_from_their_own_tensors_or_cut_from_fused_ones(tmp_path) -> None:
    rng = np.random.default_rng(0)
    gate, up = rng.normal(size=(2, 12, 6, 4)).astype(np.float32)
    single = {
        f"model.layers.0.mlp.experts.{e}.{name}.weight": values[e]
        for e in range(12)
        for name, values in (("gate_proj", gate), ("up_proj", up))
    }
    fused = {"model.layers.0.mlp.experts.gate_up_proj": np.concatenate([gate, up], axis=1)}
    published = Published(
        tensors={
            f"blk.{{i}}.ffn_{name}_exps.weight": (
                f"model.layers.{{i}}.mlp.experts.{{e}}.{name}_proj.weight",
                Part("model.layers.{i}.mlp.experts.gate_up_proj", index, 2),
            )
            for index, name in enumerate(("gate", "up"))
        }
    )
    for tensors in (single, fused):
        with open_source(folder(tmp_path, tensors=tensors)) as source:
            named = source.named(published)
            assert sorted(named.tensors) == ["blk.0.ffn_gate_exps.weight", "blk.0.ffn_up_exps.weight"]
            for name, values in (("gate", gate), ("up", up)):
                tensor = named.tensor(f"blk.0.ffn_{name}_exps.weight")
                assert named.tensors[tensor.name].shape == (12, 6, 4)
                assert (tensor.experts, tensor.shape) == (12, (6, 4))
                np.testing.assert_array_equal(tensor.dequantize(), values)
    del single["model.layers.0.mlp.experts.3.up_proj.weight"]
    with (
        open_source(folder(tmp_path, tensors=single)) as source,
        pytest.raises(CorruptModel, match="lacks expert 3 of 12"),
    ):
        source.named(published)


def test_tensors_without_a_row_keep_their_names_and_old_frequencies_are_passed_over(tmp_path) -> None:
    more = {
        "model.odd": np.ones(2, np.float32),
        "model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(1, np.float32),
    }
    with open_source(folder(tmp_path, tensors=TENSORS | more)) as source:
        assert [name for name in source.named(PUBLISHED).tensors if name.startswith("model.")] == [
            "model.odd"
        ]


def test_fields_are_those_of_the_table_and_constants(tmp_path) -> None:
    published = Published(fields={"attention.scale": "query_size", "norm.offset": Constant(1.0)})
    with open_source(folder(tmp_path, {"query_size": 24})) as source:
        fields = source.named(published).fields
        assert fields.integer("block_count", 9) == 2 and fields.integer("attention.scale", 99) == 24
        assert fields.number("norm.offset", 0, 1) == 1.0
        with pytest.raises(CorruptModel, match="'num_attention_heads': must be an integer from 3"):
            fields.integer("attention.head_count", 9, low=3)


def refused(path, message: str, kind: type[Exception] = UnsupportedModel) -> None:
    with pytest.raises(kind, match=message):
        open_source(path)


def test_folders_that_hold_no_model_say_what_to_do(tmp_path) -> None:
    refused(tmp_path, "it has no config.json")
    refused(tmp_path / "model.safetensors", "name the folder in which it lies")
    (tmp_path / "a.gguf").write_bytes(b"")
    refused(tmp_path, "name one of them: a.gguf")
    (tmp_path / "config.json").write_text('{"architectures": ["A"]}')
    refused(tmp_path, "no model.safetensors and no model.safetensors.index.json", CorruptModel)
    (tmp_path / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch /tmp/corral-pickle'\ntR.")
    refused(tmp_path, "pytorch_model.bin, a format that can run code .* convert them to safetensors")


def test_code_of_the_folder_is_never_run(tmp_path) -> None:
    files = {"modeling_tiny.py": f"open({str(tmp_path / 'ran')!r}, 'w')"}
    config = {"auto_map": {"AutoModelForCausalLM": "modeling_tiny.TinyForCausalLM"}}
    with open_source(folder(tmp_path, config, files=files)) as source:
        source.named(PUBLISHED).tensor("output.weight")
    refused(folder(tmp_path, {**config, "architectures": None}), "Code that comes with a model is never run")
    assert not (tmp_path / "ran").exists()


def test_quantized_folder_is_unsupported_by_name(tmp_path) -> None:
    refused(folder(tmp_path, {"quantization_config": {"quant_method": "fp8"}}), "quantized by 'fp8'")


@pytest.mark.parametrize(
    "name", ["../out.safetensors", "/etc/passwd", "a/b.safetensors", "..", "a\\b", "a\0b", ""]
)
def test_index_that_leaves_the_folder_is_refused(tmp_path, name) -> None:
    path = folder(tmp_path, shards=2)
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    refused(path, "is not the name of a file in the folder", CorruptModel)


def test_missing_shards_are_named(tmp_path) -> None:
    path = folder(tmp_path, shards=3)
    for number in (1, 3):
        (path / f"model-0000{number}-of-00003.safetensors").unlink()
    message = (
        "files are missing: model-00001-of-00003.safetensors, model-00003-of-00003.safetensors; download"
    )
    refused(path, message, CorruptModel)


@pytest.mark.parametrize(
    "index", ["", "[]", "{}", '{"weight_map": []}', '{"weight_map": {}}', '{"weight_map": {"a": 1}}']
)
def test_damaged_index_is_refused(tmp_path, index) -> None:
    path = folder(tmp_path, shards=2)
    (path / "model.safetensors.index.json").write_text(index)
    refused(path, "model.safetensors.index.json", CorruptModel)


def test_tensor_in_two_shards_is_refused(tmp_path) -> None:
    path = folder(tmp_path, shards=2)
    hf_folders.write_safetensors(path / "model-00002-of-00002.safetensors", TENSORS)
    refused(path, "in another file too", CorruptModel)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_link_out_of_the_folder_is_refused_and_one_inside_is_followed(tmp_path, name) -> None:
    path = folder(tmp_path)
    (path / name).rename(path / "kept")
    (path / name).symlink_to("kept")
    open_source(path).close()
    (path / "kept").rename(tmp_path / "outside")
    (path / name).unlink()
    (path / name).symlink_to(tmp_path / "outside")
    refused(
        path, f"'{name}' is a link out of the folder, to .*outside; put the file itself there", CorruptModel
    )
    (path / name).unlink()
    (path / name).symlink_to(name)
    refused(path, "cannot be followed", CorruptModel)


def test_snapshot_of_the_hugging_face_cache_links_to_its_blobs(tmp_path) -> None:
    model = tmp_path / "models--org--tiny"
    snapshot = folder(model / "snapshots")
    (model / "blobs").mkdir()
    for file in list(snapshot.iterdir()):
        file.rename(model / "blobs" / file.name)
        file.symlink_to(f"../../blobs/{file.name}")
    open_source(snapshot).close()


@pytest.mark.parametrize("text", ["", "nonsense", "[1]", '{"architectures": "A"}', "[" * 100_000, "\xff"])
def test_damaged_configuration_is_refused(tmp_path, text) -> None:
    path = folder(tmp_path)
    (path / "config.json").write_text(text, encoding="latin-1")
    with pytest.raises((CorruptModel, UnsupportedModel)):
        open_source(path)
