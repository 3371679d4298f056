"""GGUF models as their authors' folders: weights dequantised by the `gguf` package, with published names."""

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np

import hf_folders
import tokenizer_json
from gguf_files import text_assets

NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
NORMS = {
    "llama": {"ffn_norm": "post_attention_layernorm"},
    "gemma3": {
        "ffn_norm": "pre_feedforward_layernorm",
        "post_attention_norm": "post_attention_layernorm",
        "post_ffw_norm": "post_feedforward_layernorm",
    },
}
ARCHITECTURES = {"llama": "LlamaForCausalLM", "gemma3": "Gemma3ForCausalLM"}


def export_folder(path: Path, folder: Path, *, dtype: str = "F32", shards: int = 1) -> Path:
    """The model of a GGUF file as a folder with tokenizer.json, chat template and configurations."""
    reader = gguf.GGUFReader(path)
    metadata = {key: field.contents() for key, field in reader.fields.items() if not key.startswith("GGUF.")}
    tensors = {}
    for tensor in reader.tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        tensors[_name(tensor.name, metadata)] = _as_published(tensor.name, values, metadata)
    config = _config(metadata, tied="lm_head.weight" not in tensors)
    return hf_folders.write_folder(
        folder, config, tensors, dtype=dtype, shards=shards, files=_text_files(metadata)
    )


def _name(name: str, metadata: dict[str, Any]) -> str:
    names = NAMES | NORMS[metadata["general.architecture"]]
    *block, tensor, suffix = name.split(".")
    return f"model.layers.{block[1]}.{names[tensor]}.{suffix}" if block else f"{names[tensor]}.{suffix}"


def _as_published(name: str, values: np.ndarray, metadata: dict[str, Any]) -> np.ndarray:
    """Undo what converters to GGUF do: q and k permuted (llama), 1 added to norms (gemma3)."""
    if metadata["general.architecture"] == "gemma3":
        return values - 1 if "norm" in name else values
    for kind, key in (("attn_q.", "head_count"), ("attn_k.", "head_count_kv")):
        if kind in name:
            heads = metadata[f"llama.attention.{key}"]
            halves = values.reshape(heads, -1, 2, *values.shape[1:])
            return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(values.shape)
    return values


def _config(metadata: dict[str, Any], tied: bool) -> dict[str, Any]:
    family = metadata["general.architecture"]

    def get(name: str) -> Any:
        return metadata.get(f"{family}.{name}")

    window = get("attention.sliding_window")
    layers = get("block_count")
    more = (
        {}
        if family == "llama"
        else {
            "rope_local_base_freq": 10000.0,
            "sliding_window": window,
            "layer_types": ["full_attention" if i % 6 == 5 else "sliding_attention" for i in range(layers)],
            "query_pre_attn_scalar": get("attention.key_length"),
            "hidden_activation": "gelu_pytorch_tanh",
        }
    )
    return {
        "architectures": [ARCHITECTURES[family]],
        "model_type": family,
        "num_hidden_layers": layers,
        "max_position_embeddings": get("context_length"),
        "hidden_size": get("embedding_length"),
        "intermediate_size": get("feed_forward_length"),
        "num_attention_heads": get("attention.head_count"),
        "num_key_value_heads": get("attention.head_count_kv"),
        "head_dim": get("attention.key_length") or get("rope.dimension_count"),
        "rms_norm_eps": get("attention.layer_norm_rms_epsilon"),
        "rope_theta": get("rope.freq_base"),
        "vocab_size": len(metadata["tokenizer.ggml.tokens"]),
        "tie_word_embeddings": tied,
        "hidden_act": "silu",
        "torch_dtype": "bfloat16",
        "attention_bias": False,
        "use_cache": True,
        **more,
    }


def _text_files(metadata: dict[str, Any]) -> dict[str, Any]:
    assets = text_assets(metadata)
    fields = assets.vocabulary
    make = tokenizer_json.bytes_json if fields["model"] == "gpt2" else tokenizer_json.pieces_json
    names = {"bos_token": "bos_token_id", "eos_token": "eos_token_id", "unk_token": "unknown_token_id"}
    settings = {name: fields["tokens"][fields[key]].decode() for name, key in names.items()}
    settings |= {"add_bos_token": fields["add_bos_token"], "chat_template": assets.templates.get("default")}
    return {
        "tokenizer.json": json.dumps(make(assets), ensure_ascii=False),
        "tokenizer_config.json": settings,
        "generation_config.json": {"eos_token_id": [fields["eos_token_id"]]},
    }
