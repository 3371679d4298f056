"""How each tensor type's blocks lie in a file, and their decoding to Groups: one row of FORMATS a type.

Layouts are those of ggml's block structs (ggml-common.h) and its dequantize_row functions (ggml-quants.c).
A layout is a numpy structure, so that a row of blocks is read by viewing the file's bytes; runs of packed
codes are one opaque item (V16 = 16 bytes): numpy copies such items many times faster than rows of bytes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from corral.weights.groups import Groups

Raw = NDArray[np.uint8]  # [M, bytes of a row]
Words = NDArray[np.uint64]  # eight codes a word


@dataclass(frozen=True, slots=True)
class Format:
    """A tensor type that can be run: how its blocks lie in memory, and their decoder."""

    name: str
    block: int  # weights of a block
    layout: np.dtype[Any]  # of a block
    decode: Callable[[Raw], Groups | NDArray[np.float32]]


def _layout(*fields: tuple[Any, ...]) -> np.dtype[Any]:
    return np.dtype(list(fields))


# 32 weights a block. qs holds weights 0-15 in the low and 16-31 in the high nibbles, qh the fifth bits.
Q4_0 = _layout(("d", "<f2"), ("qs", "V16"))  # w = d * (q - 8)
Q4_1 = _layout(("d", "<f2"), ("m", "<f2"), ("qs", "V16"))  # w = d * q + m
Q5_0 = _layout(("d", "<f2"), ("qh", "u1", 4), ("qs", "V16"))  # w = d * (q - 16)
Q5_1 = _layout(("d", "<f2"), ("m", "<f2"), ("qh", "u1", 4), ("qs", "V16"))  # w = d * q + m
Q8_0 = _layout(("d", "<f2"), ("qs", "V32"))  # w = d * q, q signed
IQ4_NL = Q4_0  # w = d * table[q]

# 256 weights a block, with a scale (and a minimum) for every 32, in Q2_K, Q3_K and Q6_K for 16.
# Q4_K, Q5_K: w = d * scale * q - dmin * minimum. 32 bytes of qs hold 32 weights in the low and the next 32 in
# the high nibbles; bit i of qh[l] is the fifth bit of weight 32 i + l. `scales`: see _sub_scales.
Q4_K = _layout(("d", "<f2"), ("dmin", "<f2"), ("scales", "<u4", 3), ("qs", "V32", 4))
Q5_K = _layout(("d", "<f2"), ("dmin", "<f2"), ("scales", "<u4", 3), ("qh", "V32"), ("qs", "V32", 4))
# Q6_K: w = d * scale * (q - 32). Each half of 128 weights: 64 bytes of ql hold 64 weights in the low and the
# next 64 in the high nibbles; bits 2 i and 2 i + 1 of qh[l] are the upper bits of weight 32 i + l.
Q6_K = _layout(("ql", "V64", 2), ("qh", "V32", 2), ("scales", "i1", 16), ("d", "<f2"))
# Q2_K: w = d * scale * q - dmin * minimum, scales in the low and minimums in the high nibbles. Each half of
# 128 weights: bits 2 i and 2 i + 1 of qs[l] are weight 32 i + l.
Q2_K = _layout(("scales", "u1", 16), ("qs", "V32", 2), ("d", "<f2"), ("dmin", "<f2"))
# Q3_K: w = d * (scale - 32) * (q - 4). The low bits as in Q2_K; bit i of hmask[l] is the third one of weight
# 32 i + l. `scales`: see _signed_scales.
Q3_K = _layout(("hmask", "V32"), ("qs", "V32", 2), ("scales", "u1", 12), ("d", "<f2"))
# IQ4_XS: w = d * (scale - 32) * table[q], 16 bytes of qs as in Q4_0. The low 4 bits of the 8 scales are the
# nibbles of scales_l, low ones first, and the upper 2 lie in scales_h, lowest first.
IQ4_XS = _layout(("d", "<f2"), ("scales_h", "<u2"), ("scales_l", "u1", 4), ("qs", "V16", 8))

_IQ4_VALUES = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.int8)

# The bits of a byte, each as bit 4 of one of eight bytes.
_FIFTH_BITS: Words = (np.unpackbits(np.arange(256, dtype="u1"), bitorder="little") << 4).view("<u8")


def _every_byte(value: int) -> np.uint64:
    return np.uint64(value * 0x0101010101010101)


def _split_bytes(packed: NDArray[np.void], width: int, at: int) -> Words:
    """Split every byte into fields of `width` bits, lowest first, each moved to bit `at` of its own byte.

    packed [..., J] items of W bytes; the result counts fields before bytes: [..., J, 8 / width, W] as words.
    """
    fields = np.empty((*packed.shape, 8 // width), packed.dtype)
    for i in range(8 // width):
        item = packed.copy()
        words: Words = item.view("<u8")
        shift = at - i * width
        if shift > 0:
            words <<= np.uint64(shift)
        elif shift < 0:
            words >>= np.uint64(-shift)
        fields[..., i] = item
    words_per_block = prod(fields.shape[2:]) * packed.dtype.itemsize // 8
    result: Words = fields.view("<u8").reshape(*packed.shape[:2], words_per_block)
    result &= _every_byte(((1 << width) - 1) << at)
    return result


def _as_codes(words: Words) -> NDArray[np.uint8]:
    """[M, blocks, words of a block] -> [M, K]."""
    rows, blocks, words_per_block = words.shape
    return words.view(np.uint8).reshape(rows, blocks * words_per_block * 8)


def _scales(blocks: NDArray[Any], field: str) -> NDArray[np.float16]:
    return np.ascontiguousarray(blocks[field])


def _decode_f32(raw: Raw) -> NDArray[np.float32]:
    return raw.view("<f4")


def _decode_f16(raw: Raw) -> NDArray[np.float32]:
    return raw.view("<f2").astype(np.float32)


def _decode_bf16(raw: Raw) -> NDArray[np.float32]:
    """The upper half of a float32."""
    wide = raw.view("<u2").astype(np.uint32)
    wide <<= np.uint32(16)
    return wide.view(np.float32)


def _decode_q4_0(raw: Raw) -> Groups:
    blocks = raw.view(Q4_0)
    return Groups(_as_codes(_split_bytes(blocks["qs"], 4, 0)), 4, 32, _scales(blocks, "d"), zero=8)


def _decode_q4_1(raw: Raw) -> Groups:
    blocks = raw.view(Q4_1)
    return Groups(
        _as_codes(_split_bytes(blocks["qs"], 4, 0)), 4, 32, _scales(blocks, "d"), _scales(blocks, "m")
    )


def _five_bits(blocks: NDArray[Any]) -> NDArray[np.uint8]:
    words = _split_bytes(blocks["qs"], 4, 0)
    words |= _FIFTH_BITS[blocks["qh"]]
    return _as_codes(words)


def _decode_q5_0(raw: Raw) -> Groups:
    blocks = raw.view(Q5_0)
    return Groups(_five_bits(blocks), 5, 32, _scales(blocks, "d"), zero=16)


def _decode_q5_1(raw: Raw) -> Groups:
    blocks = raw.view(Q5_1)
    return Groups(_five_bits(blocks), 5, 32, _scales(blocks, "d"), _scales(blocks, "m"))


def _decode_q8_0(raw: Raw) -> Groups:
    blocks = raw.view(Q8_0)
    codes = np.ascontiguousarray(blocks["qs"]).view(np.int8)
    return Groups(codes, 8, 32, _scales(blocks, "d"))


def _sub_scales(packed: NDArray[np.uint32]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Eight 6-bit scales and eight minimums a block from 12 bytes [M, blocks, 3 words] -> two of [M, K / 32].

    Words a and b: the low 6 bits of every byte are scales 0-3 and minimums 0-3, the upper 2 bits are those of
    numbers 4-7, whose low 4 bits are the low (scales) and high (minimums) nibbles of word c.
    """
    a, b, c = packed[..., 0], packed[..., 1], packed[..., 2]
    result = np.empty((2, *a.shape, 2), "<u4")
    low, high, top = np.uint32(0x3F3F3F3F), np.uint32(0x0F0F0F0F), np.uint32(0x30303030)
    two, four = np.uint32(2), np.uint32(4)
    result[0, ..., 0] = a & low
    result[1, ..., 0] = b & low
    result[0, ..., 1] = c & high | (a >> two) & top
    result[1, ..., 1] = (c >> four) & high | (b >> two) & top
    flat = result.view(np.uint8).reshape(2, len(packed), packed.shape[1] * 8)
    return flat[0], flat[1]


def _k_groups(blocks: NDArray[Any], bits: int, words: Words) -> Groups:
    scale, minimum = _sub_scales(blocks["scales"])
    super_scale, super_offset = _scales(blocks, "d"), _scales(blocks, "dmin")
    return Groups(_as_codes(words), bits, 32, super_scale, super_offset, scale, minimum, sub_bits=6)


def _decode_q4_k(raw: Raw) -> Groups:
    blocks = raw.view(Q4_K)
    return _k_groups(blocks, 4, _split_bytes(blocks["qs"], 4, 0))


def _decode_q5_k(raw: Raw) -> Groups:
    blocks = raw.view(Q5_K)
    words = _split_bytes(blocks["qs"], 4, 0)
    words |= _split_bytes(blocks["qh"], 1, 4)
    return _k_groups(blocks, 5, words)


def _decode_q6_k(raw: Raw) -> Groups:
    blocks = raw.view(Q6_K)
    words = _split_bytes(blocks["ql"], 4, 0)
    words |= _split_bytes(blocks["qh"], 2, 4)
    sub_scale = np.ascontiguousarray(blocks["scales"]).reshape(len(raw), blocks.shape[1] * 16)
    return Groups(_as_codes(words), 6, 16, _scales(blocks, "d"), sub_scale=sub_scale, zero=32)


def _nibbles(packed: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """The low and the high 4 bits of every byte."""
    return packed & np.uint8(15), packed >> np.uint8(4)


def _decode_q2_k(raw: Raw) -> Groups:
    blocks = raw.view(Q2_K)
    codes = _as_codes(_split_bytes(blocks["qs"], 2, 0))
    packed: NDArray[np.uint8] = blocks["scales"].reshape(len(raw), blocks.shape[1] * 16)
    super_scale, super_offset = _scales(blocks, "d"), _scales(blocks, "dmin")
    return Groups(codes, 2, 16, super_scale, super_offset, *_nibbles(packed), sub_bits=4)


def _signed_scales(packed: NDArray[np.uint8]) -> NDArray[np.int8]:
    """Sixteen 6-bit scales, less 32, from 12 bytes [M, blocks, 12] -> [M, K / 16].

    The low 4 bits of scales 0-7 are the low, of 8-15 the high nibbles of bytes 0-7; the upper 2 bits of
    scales 4 i to 4 i + 3 are bits 2 i and 2 i + 1 of bytes 8-11.
    """
    low = np.concatenate(_nibbles(packed[..., :8]), axis=-1)
    high = np.concatenate([packed[..., 8:] >> shift & 3 for shift in (0, 2, 4, 6)], axis=-1)
    scales: NDArray[np.int8] = (low | high << 4).view(np.int8) - np.int8(32)
    return scales.reshape(len(packed), packed.shape[1] * 16)


def _decode_q3_k(raw: Raw) -> Groups:
    blocks = raw.view(Q3_K)
    words = _split_bytes(blocks["qs"], 2, 0)
    words |= _split_bytes(blocks["hmask"], 1, 2)
    sub_scale = _signed_scales(blocks["scales"])
    return Groups(_as_codes(words), 3, 16, _scales(blocks, "d"), sub_scale=sub_scale, zero=4)


def _decode_iq4_nl(raw: Raw) -> Groups:
    blocks = raw.view(IQ4_NL)
    codes = _as_codes(_split_bytes(blocks["qs"], 4, 0))
    return Groups(codes, 4, 32, _scales(blocks, "d"), table=_IQ4_VALUES)


def _decode_iq4_xs(raw: Raw) -> Groups:
    blocks = raw.view(IQ4_XS)
    codes = _as_codes(_split_bytes(blocks["qs"], 4, 0))
    low = np.stack(_nibbles(blocks["scales_l"]), axis=-1)
    high = blocks["scales_h"][..., None] >> np.arange(0, 16, 2, dtype=np.uint16) & 3
    scales = low.reshape(high.shape).view(np.int8) + (high << 4).astype(np.int8) - np.int8(32)
    sub_scale = scales.reshape(len(raw), blocks.shape[1] * 8)
    return Groups(codes, 4, 32, _scales(blocks, "d"), sub_scale=sub_scale, table=_IQ4_VALUES)


FORMATS: dict[str, Format] = {
    row.name: row
    for row in (
        Format("F32", 1, np.dtype("<f4"), _decode_f32),
        Format("F16", 1, np.dtype("<f2"), _decode_f16),
        Format("BF16", 1, np.dtype("<u2"), _decode_bf16),
        Format("Q4_0", 32, Q4_0, _decode_q4_0),
        Format("Q4_1", 32, Q4_1, _decode_q4_1),
        Format("Q5_0", 32, Q5_0, _decode_q5_0),
        Format("Q5_1", 32, Q5_1, _decode_q5_1),
        Format("Q8_0", 32, Q8_0, _decode_q8_0),
        Format("IQ4_NL", 32, IQ4_NL, _decode_iq4_nl),
        Format("IQ4_XS", 256, IQ4_XS, _decode_iq4_xs),
        Format("Q2_K", 256, Q2_K, _decode_q2_k),
        Format("Q3_K", 256, Q3_K, _decode_q3_k),
        Format("Q4_K", 256, Q4_K, _decode_q4_k),
        Format("Q5_K", 256, Q5_K, _decode_q5_k),
        Format("Q6_K", 256, Q6_K, _decode_q6_k),
    )
}


@cache
def form_of(type_name: str) -> Groups | NDArray[np.float32]:
    """No rows of a type, decoded: what kinds of numbers those of any rows are."""
    row = FORMATS[type_name]
    return row.decode(np.empty((0, row.layout.itemsize), np.uint8))
