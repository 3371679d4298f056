"""Tiny GGUF files for tests: a plain writer, and random but complete llama and gemma3 checkpoints."""

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from corral.weights.gguf_text import read_text
from corral.weights.source import TextAssets

CONTROL, USER_DEFINED, BYTE, NORMAL = 3, 4, 6, 1  # tokenizer.ggml.token_type

CORPUS = (
    "the sheep and the horses in the corral are waiting for the rain that the old man at the gate "
    "said would come over the hills in the evening and then all of them would run into the barn "
    "where there is hay and water and a little light and the man would sing to them until morning"
)
CHATML_TEMPLATE = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] "
    "+ '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
GEMMA_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ '<start_of_turn>' + "
    "('model' if message['role'] == 'assistant' else message['role']) + '\n' + message['content'] "
    "+ '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)

Encoded = tuple[str, np.ndarray]  # (type name, uint8 [rows, bytes of a row])


def write_gguf(
    path: Path | str,
    metadata: Mapping[str, Any],
    tensors: Mapping[str, np.ndarray | Encoded] | None = None,
    *,
    alignment: int = 32,
) -> Path:
    """Write a GGUF v3 file. A tensor is a float array, or what `encode` or `random_blocks` gave."""
    writer = gguf.GGUFWriter(path, str(metadata.get("general.architecture", "none")))
    if alignment != 32:
        writer.add_custom_alignment(alignment)
    for key, value in metadata.items():
        if key != "general.architecture":
            writer.add_key_value(key, value, _value_type(value))
    for name, tensor in (tensors or {}).items():
        if isinstance(tensor, tuple):
            writer.add_tensor(name, tensor[1], raw_dtype=gguf.GGMLQuantizationType[tensor[0]])
        else:
            writer.add_tensor(name, np.ascontiguousarray(tensor))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return Path(path)


def text_assets(metadata: Mapping[str, Any]) -> TextAssets:
    """The text side of a file with this metadata, without writing it."""
    return read_text({key: _as_read(value) for key, value in metadata.items()})


def _as_read(value: Any) -> Any:
    is_texts = isinstance(value, list) and all(isinstance(item, str) for item in value)
    return [item.encode() for item in value] if is_texts else value


def _value_type(value: Any) -> gguf.GGUFValueType:
    types = gguf.GGUFValueType
    if isinstance(value, int) and not isinstance(value, bool):
        if value < 0:
            return types.INT32 if value >= -(2**31) else types.INT64
        return types.UINT32 if value < 2**32 else types.UINT64
    return types.get_type(value)


def encode(values: np.ndarray, type_name: str) -> Encoded:
    """Quantise float rows to Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, F32, F16 or BF16."""
    kind = gguf.GGMLQuantizationType[type_name]
    rows = gguf.quants.quantize(np.ascontiguousarray(values, dtype=np.float32), kind)
    return type_name, rows.view(np.uint8).reshape(len(values), -1)


def random_matrix(rng: np.random.Generator, type_name: str, rows: int, cols: int, std: float) -> Encoded:
    """Random weights of about this standard deviation, stored as this type."""
    block = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[type_name]][0]
    if cols % block:
        raise ValueError(f"{type_name} needs a multiple of {block} columns, not {cols}")
    if type_name in K_BLOCKS:
        count = rows * cols // block
        return type_name, K_BLOCKS[type_name](rng, count, std).reshape(rows, -1)
    return encode(rng.normal(0, std, (rows, cols)), type_name)


def _halves(values: np.ndarray) -> np.ndarray:
    return values.astype(np.float16).view(np.uint8).reshape(len(values), 2)


def _pack_sub_scales(scale: np.ndarray, offset: np.ndarray) -> np.ndarray:
    """Two [B, 8] arrays of 6-bit values in 12 bytes, as Q4_K and Q5_K keep them."""
    low = scale[:, :4] | (scale[:, 4:] >> 4) << 6
    middle = offset[:, :4] | (offset[:, 4:] >> 4) << 6
    high = scale[:, 4:] & 15 | (offset[:, 4:] & 15) << 4
    return np.concatenate([low, middle, high], axis=1)


def _q4_or_q5_k(rng: np.random.Generator, count: int, std: float, levels: int) -> np.ndarray:
    scale = rng.integers(32, 64, (count, 8), dtype=np.uint8)
    step = rng.uniform(0.8, 1.2, count) * std / (48 * levels / 3.46)
    parts = [_halves(step), _halves(step * (levels - 1) / 2), _pack_sub_scales(scale, scale)]
    code_bytes = 128 if levels == 16 else 160
    return np.concatenate([*parts, rng.integers(0, 256, (count, code_bytes), dtype=np.uint8)], axis=1)


def _q4_k(rng: np.random.Generator, count: int, std: float) -> np.ndarray:
    return _q4_or_q5_k(rng, count, std, 16)


def _q5_k(rng: np.random.Generator, count: int, std: float) -> np.ndarray:
    return _q4_or_q5_k(rng, count, std, 32)


def _q6_k(rng: np.random.Generator, count: int, std: float) -> np.ndarray:
    codes = rng.integers(0, 256, (count, 192), dtype=np.uint8)
    scale = rng.integers(32, 128, (count, 16), dtype=np.int8) * rng.choice([-1, 1], (count, 16)).astype(
        np.int8
    )
    step = rng.uniform(0.8, 1.2, count) * std / (80 * 18.5)
    return np.concatenate([codes, scale.view(np.uint8), _halves(step)], axis=1)


K_BLOCKS = {"Q4_K": _q4_k, "Q5_K": _q5_k, "Q6_K": _q6_k}


def _learn_merges(words: list[list[str]], count: int) -> list[tuple[str, str]]:
    """The `count` most frequent pairs, one after the other: byte pair encoding's training."""
    merges: list[tuple[str, str]] = []
    while len(merges) < count:
        pairs = Counter(pair for word in words for pair in itertools.pairwise(word))
        if not pairs:
            break
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        merges.append(best)
        for word in words:
            i = 0
            while i < len(word) - 1:
                if (word[i], word[i + 1]) == best:
                    word[i : i + 2] = ["".join(best)]
                i += 1
    return merges


def byte_characters() -> list[str]:
    """The printable character that byte-level BPE writes for each byte 0..255."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(byte) if byte in plain else chr(next(others)) for byte in range(256)]


def bpe_tokenizer() -> dict[str, Any]:
    """Metadata of a byte-level BPE with 5 control tokens, 256 bytes and up to 100 merges."""
    control = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<repo_name>", "<file_sep>"]
    merges = _learn_merges([list("Ġ" + word) for word in CORPUS.split()], 100)
    tokens = control + byte_characters() + list(dict.fromkeys("".join(pair) for pair in merges))
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [CONTROL] * len(control) + [NORMAL] * (len(tokens) - len(control)),
        "tokenizer.ggml.merges": [" ".join(pair) for pair in merges],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.padding_token_id": 2,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.ggml.add_space_prefix": False,
        "tokenizer.chat_template": CHATML_TEMPLATE,
    }


def spm_tokenizer() -> dict[str, Any]:
    """Metadata of a SentencePiece-style BPE: control tokens, byte fallback, pieces and characters."""
    control = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"]
    user_defined = ["\n", "\n\n"]
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    merges = _learn_merges([list("▁" + word) for word in CORPUS.split()], 100)
    characters = ["▁", *(chr(code) for code in range(33, 127)), "é", "日"]
    pieces = list(dict.fromkeys([*("".join(pair) for pair in merges), *characters]))
    types = [(control, CONTROL), (user_defined, USER_DEFINED), (byte_tokens, BYTE), (pieces, NORMAL)]
    unscored = len(control) + len(user_defined)
    scores = [-1000.0] * unscored + [0.0] * 256 + [-float(rank) for rank in range(len(pieces))]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": [token for tokens, _ in types for token in tokens],
        "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.token_type": [kind for tokens, kind in types for _ in tokens],
        "tokenizer.ggml.bos_token_id": 2,
        "tokenizer.ggml.eos_token_id": 1,
        "tokenizer.ggml.unknown_token_id": 3,
        "tokenizer.ggml.padding_token_id": 0,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.add_sep_token": False,
        "tokenizer.ggml.add_eos_token": False,
        "tokenizer.ggml.add_space_prefix": False,
        "tokenizer.chat_template": GEMMA_TEMPLATE,
    }


class _Checkpoint:
    """Collects random tensors; matrices take the given types in turn."""

    def __init__(self, seed: int, types: Sequence[str], embed_type: str):
        self.rng = np.random.default_rng(seed)
        self.types, self.embed_type = types, embed_type
        self.tensors: dict[str, np.ndarray | Encoded] = {}
        self._next = 0

    def embedding(self, name: str, rows: int, cols: int, std: float) -> None:
        self.tensors[name] = random_matrix(self.rng, self.embed_type, rows, cols, std)

    def matrix(self, name: str, rows: int, cols: int) -> None:
        """A weight whose type is the next in turn, or Q8_0 where that type's blocks do not fit."""
        type_name = self.types[self._next % len(self.types)]
        self._next += 1
        if type_name in K_BLOCKS and cols % 256:
            type_name = "Q8_0"
        self.tensors[name] = random_matrix(self.rng, type_name, rows, cols, cols**-0.5)

    def norm(self, name: str, width: int) -> None:
        self.tensors[name] = self.rng.normal(1, 0.1, width).astype(np.float32)


def tiny_llama(
    path: Path | str,
    seed: int = 0,
    *,
    layers: int = 2,
    hidden: int = 64,
    ffn: int = 128,
    heads: int = 4,
    kv_heads: int = 2,
    context: int = 512,
    types: Sequence[str] = ("Q4_1", "Q8_0"),
    embed_type: str = "Q8_0",
    tied: bool = True,
    vocab: int = 0,
    metadata: Mapping[str, Any] | None = None,
) -> Path:
    """A random llama checkpoint, keys and names as in SmolLM2. `metadata` changes, adds or removes (None).

    With a `vocab` it has so many tokens and no tokeniser.
    """
    head = hidden // heads
    tokenizer = {} if vocab else bpe_tokenizer()
    vocab = vocab or len(tokenizer["tokenizer.ggml.tokens"])
    values = {
        "general.architecture": "llama",
        "general.type": "model",
        "general.name": "Tiny Llama",
        "general.size_label": "0.2M",
        "general.license": "apache-2.0",
        "general.languages": ["en"],
        "llama.block_count": layers,
        "llama.context_length": context,
        "llama.embedding_length": hidden,
        "llama.feed_forward_length": ffn,
        "llama.attention.head_count": heads,
        "llama.attention.head_count_kv": kv_heads,
        "llama.rope.freq_base": 100000.0,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.vocab_size": vocab,
        "llama.rope.dimension_count": head,
        "general.file_type": 3,
        **tokenizer,
        "general.quantization_version": 2,
    }
    model = _Checkpoint(seed, types, embed_type)
    model.embedding("token_embd.weight", vocab, hidden, 0.5)
    for i in range(layers):
        model.norm(f"blk.{i}.attn_norm.weight", hidden)
        model.matrix(f"blk.{i}.ffn_down.weight", hidden, ffn)
        model.matrix(f"blk.{i}.ffn_gate.weight", ffn, hidden)
        model.matrix(f"blk.{i}.ffn_up.weight", ffn, hidden)
        model.norm(f"blk.{i}.ffn_norm.weight", hidden)
        model.matrix(f"blk.{i}.attn_k.weight", kv_heads * head, hidden)
        model.matrix(f"blk.{i}.attn_output.weight", hidden, hidden)
        model.matrix(f"blk.{i}.attn_q.weight", hidden, hidden)
        model.matrix(f"blk.{i}.attn_v.weight", kv_heads * head, hidden)
    model.norm("output_norm.weight", hidden)
    if not tied:
        model.embedding("output.weight", vocab, hidden, 0.5)
    return write_gguf(path, _override(values, metadata), model.tensors)


def tiny_gemma3(
    path: Path | str,
    seed: int = 0,
    *,
    layers: int = 6,
    hidden: int = 64,
    ffn: int = 128,
    heads: int = 2,
    kv_heads: int = 1,
    head_dim: int = 32,
    window: int = 32,
    context: int = 512,
    types: Sequence[str] = ("Q5_0", "Q8_0"),
    embed_type: str = "Q8_0",
    metadata: Mapping[str, Any] | None = None,
) -> Path:
    """A random gemma3 checkpoint (layer 6 is global), keys and names as in Gemma 3 270M."""
    tokenizer = spm_tokenizer()
    values = {
        "general.architecture": "gemma3",
        "general.type": "model",
        "general.name": "Tiny Gemma",
        "general.size_label": "0.3M",
        "general.license": "gemma",
        "gemma3.context_length": context,
        "gemma3.embedding_length": hidden,
        "gemma3.block_count": layers,
        "gemma3.feed_forward_length": ffn,
        "gemma3.attention.head_count": heads,
        "gemma3.attention.layer_norm_rms_epsilon": 1e-6,
        "gemma3.attention.key_length": head_dim,
        "gemma3.attention.value_length": head_dim,
        "gemma3.rope.freq_base": 1000000.0,
        "gemma3.attention.sliding_window": window,
        "gemma3.attention.head_count_kv": kv_heads,
        **tokenizer,
        "general.quantization_version": 2,
        "general.file_type": 15,
    }
    model = _Checkpoint(seed, types, embed_type)
    model.norm("output_norm.weight", hidden)
    model.embedding("token_embd.weight", len(tokenizer["tokenizer.ggml.tokens"]), hidden, hidden**-0.5)
    for i in range(layers):
        model.matrix(f"blk.{i}.attn_k.weight", kv_heads * head_dim, hidden)
        model.norm(f"blk.{i}.attn_k_norm.weight", head_dim)
        model.norm(f"blk.{i}.attn_norm.weight", hidden)
        model.matrix(f"blk.{i}.attn_output.weight", hidden, heads * head_dim)
        model.matrix(f"blk.{i}.attn_q.weight", heads * head_dim, hidden)
        model.norm(f"blk.{i}.attn_q_norm.weight", head_dim)
        model.matrix(f"blk.{i}.attn_v.weight", kv_heads * head_dim, hidden)
        model.matrix(f"blk.{i}.ffn_down.weight", hidden, ffn)
        model.matrix(f"blk.{i}.ffn_gate.weight", ffn, hidden)
        model.norm(f"blk.{i}.ffn_norm.weight", hidden)
        model.matrix(f"blk.{i}.ffn_up.weight", ffn, hidden)
        model.norm(f"blk.{i}.post_attention_norm.weight", hidden)
        model.norm(f"blk.{i}.post_ffw_norm.weight", hidden)
    return write_gguf(path, _override(values, metadata), model.tensors)


def _override(values: dict[str, Any], metadata: Mapping[str, Any] | None) -> dict[str, Any]:
    return {key: value for key, value in {**values, **(metadata or {})}.items() if value is not None}
