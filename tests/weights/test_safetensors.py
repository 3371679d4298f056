"""The safetensors reader: what is whole is read, what lies is refused."""

import json
import struct

import numpy as np
import pytest

import hf_folders
from corral.errors import CorruptModel, ModelNotFound, UnsupportedModel
from corral.weights.safetensors import SafetensorsFile


def entry(shape=(2,), start=0, end=8, dtype="F32", **more) -> dict:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end], **more}


def test_tensors_are_read_where_they_lie(tmp_path) -> None:
    tensors = {"b": np.arange(6, dtype=np.float32).reshape(2, 3), "a": np.ones(4, np.float32)}
    with SafetensorsFile(hf_folders.write_safetensors(tmp_path / "m.safetensors", tensors)) as file:
        assert {name: (info.shape, info.type) for name, info in file.tensors.items()} == {
            "b": ((2, 3), "F32"),
            "a": ((4,), "F32"),
        }
        for name, values in tensors.items():
            read = np.frombuffer(file.tensor_bytes(name), np.float32).reshape(values.shape)
            np.testing.assert_array_equal(read, values)
            del read


def test_names_with_escapes_and_metadata_that_looks_like_entries_are_read(tmp_path) -> None:
    odd = 'a"b\\c:{ü'
    header = {"__metadata__": {odd: '{"dtype": "F32", "dtype": 1}'}, odd: entry()}
    with SafetensorsFile(hf_folders.write_raw(tmp_path / "m", json.dumps(header).encode(), bytes(8))) as file:
        assert list(file.tensors) == [odd]


DATA = bytes(16)
ONE = json.dumps({"a": entry()}).encode()
CORRUPT = {
    "cut off in the length": (b"\1\0", "it has 2 bytes"),
    "length of 2^63": (struct.pack("<Q", 1 << 63) + ONE, "claims 9223372036854775808 bytes"),
    "length beyond the file": (struct.pack("<Q", 10_000) + ONE, "claims 10000 bytes"),
    "no JSON": (b"nonsense", "its header is none"),
    "not UTF-8": (b'{"\xff": {}}', "its header is none"),
    "an array": (b"[]", "its header is none"),
    "deep": (b'{"a":' + b"[" * 100_000, "its header is none"),
    "entry without a shape": ({"a": {"dtype": "F32", "data_offsets": [0, 8]}}, "its header is none"),
    "entry with more": ({"a": entry(strides=[1])}, "its header is none"),
    "shape of texts": ({"a": entry(["2"])}, "its header is none"),
    "three offsets": ({"a": {**entry(), "data_offsets": [0, 4, 8]}}, "its header is none"),
    "metadata of numbers": ({"__metadata__": {"a": 1}}, "its header is none"),
    "beyond the end": ({"a": entry((5,), 0, 20)}, "'a' lies at 0 to 20, outside the file"),
    "negative offset": ({"a": entry((2,), -8, 0)}, "outside the file"),
    "end before start": ({"a": entry((2,), 8, 0)}, "outside the file"),
    "huge offset": ({"a": entry((2,), 0, 1 << 80)}, "outside the file"),
    "shape disagrees": ({"a": entry((3,))}, r"F32 \[3\] does not take 8 bytes"),
    "type disagrees": ({"a": entry(dtype="F16")}, "does not take 8 bytes"),
    "negative size": ({"a": entry((-2, -1))}, "2 dimensions, or one beyond"),
    "too many dimensions": ({"a": entry([1] * 8 + [2])}, "9 dimensions"),
    "product overflows": ({"a": entry([1 << 40] * 8)}, "does not take"),
    "overlap": ({"a": entry(), "b": entry((1,), 4, 8)}, "'a' and 'b' overlap"),
    "overlap of equals": ({"a": entry(), "b": entry()}, "overlap"),
    "name twice": (
        b'{"a": %s, "a": %s}' % (json.dumps(entry()).encode(), json.dumps(entry()).encode()),
        "twice",
    ),
    "field twice": (b'{"a": {"dtype":"F32","dtype":"F32","shape":[2],"data_offsets":[0,8]}}', "twice"),
    "name twice, escaped": (ONE[:-1] + b", " + ONE[1:].replace(b'"a"', b'"\\u0061"'), "twice"),
    "metadata twice": (b'{"__metadata__": {}, "__metadata__": {}}', "twice"),
}


@pytest.mark.parametrize("case", CORRUPT)
def test_file_that_lies_is_refused(tmp_path, case) -> None:
    content, message = CORRUPT[case]
    path = tmp_path / "m.safetensors"
    if isinstance(content, dict):
        hf_folders.write_raw(path, json.dumps(content).encode(), DATA)
    elif case.startswith(("cut", "length")):
        path.write_bytes(content)
    else:
        hf_folders.write_raw(path, content, DATA)
    with pytest.raises(CorruptModel, match=f"m.safetensors.*{message}"):
        SafetensorsFile(path)


def test_unknown_type_is_unsupported_by_name(tmp_path) -> None:
    path = hf_folders.write_raw(tmp_path / "m", json.dumps({"w": entry(dtype="F6_E2M3")}).encode(), DATA)
    with pytest.raises(UnsupportedModel, match="'w' has the unknown type F6_E2M3"):
        SafetensorsFile(path)


def test_missing_file_is_named(tmp_path) -> None:
    with pytest.raises(ModelNotFound, match="nowhere"):
        SafetensorsFile(tmp_path / "nowhere")


def test_file_cut_off_anywhere_is_refused(tmp_path) -> None:
    content = hf_folders.write_safetensors(tmp_path / "m", {"a": np.ones(4, np.float32)}).read_bytes()
    for length in range(len(content)):
        (tmp_path / "cut").write_bytes(content[:length])
        with pytest.raises(CorruptModel):
            SafetensorsFile(tmp_path / "cut")
