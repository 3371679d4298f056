"""Each tensor type against the gguf package's dequantiser, bit for bit."""

import gguf
import numpy as np
import pytest

import gguf_files
from corral.weights.formats import FORMATS
from corral.weights.ggml_types import TENSOR_TYPES
from corral.weights.gguf import open_gguf
from corral.weights.groups import Groups
from corral.weights.tensors import load_tensor

ALL = sorted(FORMATS)
FLOATS = ("F32", "F16", "BF16")
QUANTISED = [name for name in ALL if name not in FLOATS]
BITS = {name: int(name.removeprefix("I")[1]) for name in QUANTISED}
HALF_SCALES = {
    "Q2_K": ("d", "dmin"),
    "Q4_K": ("d", "dmin"),
    "Q5_K": ("d", "dmin"),
    "Q4_1": ("d", "m"),
    "Q5_1": ("d", "m"),
}


def random_raw(type_name: str, rows: int = 6, cols: int = 768, seed: int = 0) -> np.ndarray:
    """Rows of random bytes whose half-precision scales are finite, of every size and sign."""
    rng = np.random.default_rng(seed)
    layout = FORMATS[type_name].layout
    block = FORMATS[type_name].block
    raw = rng.integers(0, 256, (rows, cols // block * layout.itemsize), dtype=np.uint8)
    if layout.names:
        blocks = raw.view(layout)
        extremes = np.array([0, -0.0, 65504, -65504, 6e-8, -6e-8, 1, 6.1e-5], np.float16)
        for field in HALF_SCALES.get(type_name, ("d",)):
            values = rng.normal(0, 1, blocks.shape).astype(np.float16)
            values.ravel()[::3] = rng.choice(extremes, len(values.ravel()[::3]))
            blocks[field] = values
    elif type_name != "BF16":
        finite = rng.normal(0, 100, (rows, cols)).astype(layout)
        raw = finite.view(np.uint8)
    else:
        raw[:, 1::2] &= 0xBF  # keeps the exponent off NaN and infinity
    return raw


def expected(type_name: str, raw: np.ndarray) -> np.ndarray:
    kind = gguf.GGMLQuantizationType[type_name]
    data = raw.view(FORMATS[type_name].layout) if type_name in ("F32", "F16") else raw
    return gguf.quants.dequantize(data, kind).astype(np.float32).reshape(len(raw), -1)


def weights(type_name: str, raw: np.ndarray) -> np.ndarray:
    decoded = FORMATS[type_name].decode(raw)
    return decoded.dequantize() if isinstance(decoded, Groups) else decoded


@pytest.mark.parametrize("type_name", ALL)
def test_layout_has_the_size_of_the_type_table(type_name: str) -> None:
    sizes = {kind.name: (kind.block, kind.nbytes) for kind in TENSOR_TYPES.values()}
    assert (FORMATS[type_name].block, FORMATS[type_name].layout.itemsize) == sizes[type_name]


def test_type_table_agrees_with_the_gguf_package() -> None:
    theirs = {int(kind): (kind.name, *sizes) for kind, sizes in gguf.GGML_QUANT_SIZES.items()}
    ours = {number: tuple(kind) for number, kind in TENSOR_TYPES.items()}
    del theirs[9], ours[9]  # Q8_1 is never stored in files; the gguf package has the size of an older layout
    assert ours == theirs


@pytest.mark.parametrize("type_name", ALL)
def test_decoding_random_blocks_gives_exactly_the_reference_weights(type_name: str) -> None:
    raw = random_raw(type_name)
    ours, theirs = weights(type_name, raw), expected(type_name, raw)
    np.testing.assert_array_equal(ours.view(np.uint32), theirs.view(np.uint32))


@pytest.mark.parametrize("type_name", QUANTISED)
@pytest.mark.parametrize("byte", [0, 0x80, 0x7F, 0xFF])
def test_decoding_blocks_of_one_byte_gives_exactly_the_reference_weights(type_name: str, byte: int) -> None:
    raw = random_raw(type_name)
    blocks = raw.view(FORMATS[type_name].layout)
    halves = {field: blocks[field].copy() for field in HALF_SCALES.get(type_name, ("d",))}
    raw[:] = byte
    for field, values in halves.items():
        blocks[field] = values
    ours, theirs = weights(type_name, raw), expected(type_name, raw)
    np.testing.assert_array_equal(ours.view(np.uint32), theirs.view(np.uint32))


@pytest.mark.parametrize("type_name", ALL)
def test_decoding_does_not_change_the_file_bytes(type_name: str) -> None:
    raw = random_raw(type_name)
    before = raw.copy()
    raw.flags.writeable = False
    FORMATS[type_name].decode(raw)
    np.testing.assert_array_equal(raw, before)


@pytest.mark.parametrize("type_name", ALL)
@pytest.mark.parametrize(("start", "stop"), [(0, 1), (1, 4), (5, None), (2, 2)])
def test_decoding_some_rows_equals_those_rows_of_all(
    tmp_path, type_name: str, start: int, stop: int | None
) -> None:
    raw = random_raw(type_name)
    tensor = (type_name, raw) if type_name not in ("F32", "F16") else raw.view(FORMATS[type_name].layout)
    with open_gguf(gguf_files.write_gguf(tmp_path / "m.gguf", {}, {"w": tensor})) as file:
        matrix = load_tensor(file, "w")
        assert matrix.shape == (6, 768)
        rows = matrix.dequantize(start, stop)
        np.testing.assert_array_equal(rows, expected(type_name, raw)[start:stop])


@pytest.mark.parametrize("type_name", QUANTISED)
def test_groups_have_the_documented_shapes_and_types(type_name: str) -> None:
    groups = FORMATS[type_name].decode(random_raw(type_name))
    assert isinstance(groups, Groups)
    super_blocks = FORMATS[type_name].block == 256
    assert groups.codes.shape == (6, 768)
    assert groups.codes.dtype == (np.int8 if groups.bits == 8 else np.uint8)
    assert groups.bits == BITS[type_name]
    assert groups.bits == 8 or groups.codes.max() == 2**groups.bits - 1
    assert groups.group == (16 if type_name in ("Q2_K", "Q3_K", "Q6_K") else 32)
    per_scale = 256 if super_blocks else groups.group
    assert groups.scale.shape == (6, 768 // per_scale)
    assert groups.scale.dtype == np.float16
    for array in (groups.codes, groups.scale, groups.offset, groups.sub_scale, groups.sub_offset):
        assert array is None or array.flags.c_contiguous
    assert super_blocks == (groups.sub_scale is not None)
    for array in (groups.sub_scale, groups.sub_offset):
        assert array is None or array.shape == (6, 768 // groups.group)
        assert array is None or array.dtype == np.int8 or array.max() == 2**groups.sub_bits - 1
    if groups.offset is not None:
        assert groups.offset.shape == groups.scale.shape
        assert groups.zero == 0


@pytest.mark.parametrize("type_name", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "F32", "F16", "BF16"])
def test_encoded_weights_come_back_near(type_name: str) -> None:
    values = np.random.default_rng(1).normal(0, 1, (4, 128)).astype(np.float32)
    _, raw = gguf_files.encode(values, type_name)
    assert np.abs(weights(type_name, raw) - values).max() < {"Q4_0": 0.5, "Q4_1": 0.4}.get(type_name, 0.2)
