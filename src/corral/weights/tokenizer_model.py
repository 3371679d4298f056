"""A SentencePiece tokenizer.model: a protobuf, read here because its library does not tell how it normalises.

Field numbers: https://github.com/google/sentencepiece/blob/master/src/sentencepiece_model.proto. ModelProto:
pieces 1, trainer_spec 2, normalizer_spec 3. SentencePiece: piece 1, score 2, type 3 (the numbers of GGUF's
token types). TrainerSpec: model_type 3 (2 = BPE), unk_id 40, bos_id 41, eos_id 42, pad_id 43. NormalizerSpec:
precompiled_charsmap 2, add_dummy_prefix 3, remove_extra_whitespaces 4.
"""

import struct
from array import array
from collections.abc import Iterator
from typing import Any

from corral.errors import CorruptModel, UnsupportedModel

__all__ = ["read_tokenizer_model"]

MAX_PIECES = 1 << 20
NORMAL, BPE = 1, 2
_FLOAT = struct.Struct("<f")
_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5
_IDS = {40: "unknown_token_id", 41: "bos_token_id", 42: "eos_token_id", 43: "padding_token_id"}
_DEFAULT_IDS = {"unknown_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def read_tokenizer_model(where: str, data: bytes) -> dict[str, Any]:
    """The vocabulary's fields by canonical name; UnsupportedModel if it is no BPE or changes text first."""
    tokens, scores, types = list[bytes](), array("f"), bytearray()
    trainer, normalizer = dict[int, Any](), dict[int, Any]()
    try:
        for number, value in _fields(data):
            if number == 1:
                piece = dict(_fields(value))
                tokens.append(bytes(piece.get(1, b"")))
                scores.append(_FLOAT.unpack(piece.get(2, bytes(4)))[0])
                types.append(piece.get(3, NORMAL))
            elif number in (2, 3):
                (trainer if number == 2 else normalizer).update(_fields(value))
            if len(tokens) > MAX_PIECES:
                raise UnsupportedModel(f"{where}: 'tokenizer.model' has more than {MAX_PIECES} pieces")
        b"\0".join(tokens).decode()
    except (ValueError, TypeError, IndexError, struct.error) as error:
        raise CorruptModel(f"{where}: 'tokenizer.model' is no SentencePiece model: {error}") from None
    if trainer.get(3) != BPE:
        raise UnsupportedModel(
            f"{where}: 'tokenizer.model' is not a BPE; the model's tokenizer.json is needed"
        )
    if normalizer.get(2) or normalizer.get(4, 1):
        raise UnsupportedModel(
            f"{where}: 'tokenizer.model' normalises text, which only the model's tokenizer.json can say here"
        )
    ids = _DEFAULT_IDS | {
        name: _signed(trainer[number]) for number, name in _IDS.items() if number in trainer
    }
    return {
        "model": "llama",
        "tokens": tokens,
        "scores": scores,
        "token_type": types,
        "add_space_prefix": bool(normalizer.get(3, 1)),
        **{name: token for name, token in ids.items() if token >= 0},
    }


def _fields(data: bytes | memoryview) -> Iterator[tuple[int, Any]]:
    """Each field's number and its value: an int, or the bytes of what has a length or is fixed."""
    at, end = 0, len(data)
    while at < end:
        key, at = _varint(data, at)
        kind = key & 7
        if kind == _VARINT:
            value, at = _varint(data, at)
            yield key >> 3, value
            continue
        if kind == _LENGTH:
            size, at = _varint(data, at)
        elif kind in (_FIXED32, _FIXED64):
            size = 4 if kind == _FIXED32 else 8
        else:
            raise ValueError(f"there is no field of kind {kind}")
        if size > end - at:
            raise ValueError(f"a field of {size} bytes goes beyond the end")
        yield key >> 3, data[at : at + size]
        at += size


def _varint(data: bytes | memoryview, at: int) -> tuple[int, int]:
    """The number at a place, in seven bits a byte, and the place behind it."""
    number = shift = 0
    while True:
        byte = data[at]
        at += 1
        number |= (byte & 127) << shift
        if byte < 128:
            return number, at
        shift += 7
        if shift > 63:
            raise ValueError("a number is too long")


def _signed(number: int) -> int:
    return number - (1 << 64) if number >> 63 else number
