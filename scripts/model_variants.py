"""Model files that benchmarks need and nobody publishes: `model_variants.py VARIANT SOURCE TARGET`.

q4_0      SOURCE with its Q4_1 matrices requantised to Q4_0, the type that llama.cpp is fastest at
llama-1b  a Llama of about a billion random weights in the mix called Q4_K_M, with the vocabulary of SOURCE
q2_k, q3_k, iq4_nl, iq4_xs    the same with all matrices but the embeddings of that type
experts   the same with fewer layers, each with 16 feed-forwards of which a token takes 2
active    what a token takes of `experts`, as an ordinary model: one feed-forward of twice the width
"""

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type

HALF = np.float16


@dataclass(frozen=True)
class Shape:
    """Sizes of a llama model."""

    layers: int = 16
    hidden: int = 2048
    ffn: int = 8192
    heads: int = 32
    kv_heads: int = 8
    context: int = 8192
    experts: int = 0  # feed-forwards of a layer; 0 = an ordinary one
    used: int = 0  # of them, by each token
    kind: Type | None = None  # of all matrices but the embeddings; None = a mix


SHAPES = {
    "llama-1b": Shape(),
    "q2_k": Shape(kind=Type.Q2_K),
    "q3_k": Shape(kind=Type.Q3_K),
    "iq4_nl": Shape(kind=Type.IQ4_NL),
    "iq4_xs": Shape(kind=Type.IQ4_XS),
    "experts": Shape(layers=8, ffn=4096, experts=16, used=2),
    "active": Shape(layers=8, ffn=8192),
}


def requantise(source: Path, target: Path) -> None:
    """Write SOURCE again with Q4_0 in place of Q4_1."""
    reader = gguf.GGUFReader(source)
    writer = _writer_like(reader, target)
    for tensor in reader.tensors:
        data, kind = tensor.data, tensor.tensor_type
        if kind == Type.Q4_1:
            kind = Type.Q4_0
            data = gguf.quants.quantize(gguf.quants.dequantize(data, Type.Q4_1), kind)
        writer.add_tensor(tensor.name, data, raw_dtype=kind)
    _write(writer)


def random_llama(source: Path, target: Path, shape: Shape) -> None:
    """Write random weights under SOURCE's tokens."""
    reader = gguf.GGUFReader(source)
    vocab = len(reader.fields["tokenizer.ggml.tokens"].data)
    head_dim = shape.hidden // shape.heads
    sizes = {
        "block_count": shape.layers,
        "context_length": shape.context,
        "embedding_length": shape.hidden,
        "feed_forward_length": shape.ffn,
        "attention.head_count": shape.heads,
        "attention.head_count_kv": shape.kv_heads,
        "rope.dimension_count": head_dim,
        "vocab_size": vocab,
    }
    if shape.experts:
        sizes |= {"expert_count": shape.experts, "expert_used_count": shape.used}
    writer = _writer_like(reader, target, {f"llama.{key}": value for key, value in sizes.items()})
    random = np.random.default_rng(0)
    kv_width = shape.kv_heads * head_dim

    usual = shape.kind or Type.Q4_K

    def matrix(name: str, rows: int, cols: int, kind: Type = usual) -> None:
        writer.add_tensor(f"{name}.weight", random_blocks(random, rows, cols, kind), raw_dtype=kind)

    def feed_forward(part: str, blk: str, rows: int, cols: int, kind: Type = usual) -> None:
        if shape.experts:
            stack = random_blocks(random, shape.experts * rows, cols, kind)
            stack = stack.reshape(shape.experts, rows, -1)
            writer.add_tensor(f"{blk}.ffn_{part}_exps.weight", stack, raw_dtype=kind)
        else:
            matrix(f"{blk}.ffn_{part}", rows, cols, kind)

    def norm(name: str) -> None:
        writer.add_tensor(f"{name}.weight", np.ones(shape.hidden, np.float32))

    matrix("token_embd", vocab, shape.hidden, Type.Q6_K)
    for layer in range(shape.layers):
        # llama.cpp's rule: the first and last eighth of the layers, and every third between, get more bits.
        eighth = shape.layers // 8
        better = layer < eighth or layer >= 7 * eighth or (layer - eighth) % 3 == 2
        rich, blk = Type.Q6_K if better and shape.kind is None else usual, f"blk.{layer}"
        norm(f"{blk}.attn_norm")
        matrix(f"{blk}.attn_q", shape.hidden, shape.hidden)
        matrix(f"{blk}.attn_k", kv_width, shape.hidden)
        matrix(f"{blk}.attn_v", kv_width, shape.hidden, rich)
        matrix(f"{blk}.attn_output", shape.hidden, shape.hidden)
        norm(f"{blk}.ffn_norm")
        if shape.experts:
            router = random.standard_normal((shape.experts, shape.hidden), np.float32)
            writer.add_tensor(f"{blk}.ffn_gate_inp.weight", router)
        feed_forward("gate", blk, shape.ffn, shape.hidden)
        feed_forward("up", blk, shape.ffn, shape.hidden)
        feed_forward("down", blk, shape.hidden, shape.ffn, rich)
    norm("output_norm")
    _write(writer)


def _half(number: float) -> bytes:
    return HALF(number).tobytes()


# What random blocks have at some of their bytes, so that weights are about 0.02 in size and zero in the mean:
# sub scales and offsets all alike, or half of them negative.
FIXED: dict[Type, dict[int, bytes]] = {
    Type.Q2_K: {0: b"\xc8" * 16, 80: 2 * _half(0.02 / 8.9)},
    Type.Q3_K: {96: bytes(8) + b"\x77" * 4, 108: _half(0.02 / (16 * 2.3))},
    Type.Q4_K: {0: _half(0.02 / (32 * 4.6)) + _half(7.5 * 0.02 / (32 * 4.6)), 4: b"\xa0" * 8 + bytes(4)},
    Type.Q6_K: {192: b"\x10" * 16, 208: _half(0.02 / (16 * 18.5))},
    Type.IQ4_NL: {0: _half(0.02 / 70)},
    Type.IQ4_XS: {0: _half(0.02 / (16 * 70)), 2: b"\x77\x77" + bytes(4)},
}


def random_blocks(random: np.random.Generator, rows: int, cols: int, kind: Type) -> np.ndarray:
    """Rows of blocks with random codes [rows, bytes of a row]."""
    block, size = gguf.GGML_QUANT_SIZES[kind]
    blocks = random.integers(0, 256, (rows, cols // block, size), np.uint8)
    for at, fixed in FIXED[kind].items():
        blocks[:, :, at : at + len(fixed)] = np.frombuffer(fixed, np.uint8)
    return blocks.reshape(rows, -1)


def _writer_like(
    reader: gguf.GGUFReader, target: Path, replaced: dict[str, int] | None = None
) -> gguf.GGUFWriter:
    """A writer with the metadata of a file, but for some whole numbers."""
    writer = gguf.GGUFWriter(target, reader.fields["general.architecture"].contents())
    numbers = dict(replaced or {})
    for key, field in reader.fields.items():
        if key.startswith("GGUF.") or key == "general.architecture" or key in numbers:
            continue
        element = field.types[1] if len(field.types) > 1 else None
        writer.add_key_value(key, field.contents(), field.types[0], sub_type=element)
    for key, number in numbers.items():
        writer.add_uint32(key, number)
    return writer


def _write(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main() -> int:
    """Write the variant that is asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("variant", choices=["q4_0", *SHAPES])
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    arguments = parser.parse_args()
    if arguments.variant == "q4_0":
        requantise(arguments.source, arguments.target)
    else:
        random_llama(arguments.source, arguments.target, SHAPES[arguments.variant])
    return 0


if __name__ == "__main__":
    sys.exit(main())
