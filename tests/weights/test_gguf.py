"""What the GGUF reader reads, and what it says about files that it refuses."""

import subprocess
import sys
from pathlib import Path

import gguf_bytes as raw
import numpy as np
import pytest

from corral.errors import CorralError, CorruptModel, ModelNotFound, UnsupportedModel, UserError
from corral.weights.gguf import TensorInfo, open_gguf


@pytest.fixture
def write(tmp_path):
    return lambda content: raw.write(tmp_path / "m.gguf", content)


@pytest.mark.parametrize("version", [2, 3])
def test_both_versions_are_read(write, version) -> None:
    with open_gguf(write(raw.whole([raw.scalar("k", raw.STRING, "v")], version=version))) as file:
        assert (file.version, dict(file.metadata), file.tensors) == (version, {"k": "v"}, {})


def test_every_scalar_type_is_read(write) -> None:
    values = {
        raw.U8: 255,
        raw.I8: -128,
        raw.U16: 65535,
        raw.I16: -32768,
        raw.U32: 2**32 - 1,
        raw.I32: -(2**31),
        raw.F32: 0.5,
        raw.BOOL: True,
        raw.STRING: "ümlaut",
        raw.U64: 2**64 - 1,
        raw.I64: -(2**63),
        raw.F64: 0.1,
    }
    with open_gguf(write(raw.whole([raw.scalar(f"k{kind}", kind, v) for kind, v in values.items()]))) as file:
        assert list(file.metadata.values()) == list(values.values())
        assert file.metadata["k7"] is True


def test_every_array_type_is_read(write) -> None:
    values = {kind: [0, 1, 100] for kind in raw.FORMATS} | {
        raw.BOOL: [True, False],
        raw.F64: [0.1],
        raw.U8: [],
    }
    with open_gguf(write(raw.whole([raw.array(f"k{kind}", kind, v) for kind, v in values.items()]))) as file:
        assert [value.tolist() for value in file.metadata.values()] == list(values.values())


def test_string_array_behaves_as_a_sequence(write) -> None:
    words = ["a", "", "日本", "d" * 300]
    with open_gguf(
        write(raw.whole([raw.array("k", raw.STRING, words), raw.array("e", raw.STRING, [])]))
    ) as file:
        strings = file.metadata["k"]
        assert list(strings) == strings.tolist() == words
        assert (strings[0], strings[1], strings[-1], strings[-4]) == ("a", "", words[3], "a")
        assert strings[1:3] == words[1:3]
        assert (len(strings), "日本" in strings, "x" in strings) == (4, True, False)
        for index in (4, -5):
            with pytest.raises(IndexError):
                strings[index]
        assert list(file.metadata["e"]) == []


def test_string_that_is_not_utf8_is_named_on_access(write) -> None:
    with open_gguf(write(raw.whole([raw.array("toks", raw.STRING, ["ok", b"\xff"])]))) as file:
        assert file.metadata["toks"][0] == "ok"
        for read in (lambda: file.metadata["toks"][1], lambda: file.metadata["toks"].tolist()):
            with pytest.raises(CorruptModel, match="element 1 of 'toks' is not UTF-8"):
                read()


def test_single_string_that_is_not_utf8_is_shown_with_replacement(write) -> None:
    with open_gguf(write(raw.whole([raw.scalar("licence", raw.STRING, b"caf\xe9")]))) as file:
        assert file.metadata["licence"] == "caf\ufffd"


def test_tensor_table_gives_shape_type_and_place(write) -> None:
    content = raw.small()
    with open_gguf(write(content)) as file:
        start = len(content) - 100
        assert list(file.tensors.values()) == [
            TensorInfo("a", (4,), "F32", start, 16),
            TensorInfo("b", (2, 32), "Q8_0", start + 32, 68),
        ]
        assert file.tensor_bytes("b") == content[start + 32 :]


def test_alignment_of_the_file_moves_the_data(write) -> None:
    keys = [raw.scalar("general.alignment", raw.U32, 4096)]
    with open_gguf(write(raw.whole(keys, [raw.tensor("a", [4])], data=16, alignment=4096))) as file:
        assert file.tensors["a"].offset == 4096
        assert bytes(file.tensor_bytes("a")) == bytes(range(1, 17))


def test_file_without_tensors_may_end_after_its_header(write) -> None:
    with open_gguf(write(raw.whole([]))) as file:
        assert (dict(file.metadata), file.tensors, file.size) == ({}, {}, 24)


def test_closing_unmaps_the_file(write) -> None:
    path = write(raw.small())
    file = open_gguf(path)
    assert str(path) in Path("/proc/self/maps").read_text()
    file.close()
    assert str(path) not in Path("/proc/self/maps").read_text()


def test_numpy_is_not_imported() -> None:
    code = "import sys, corral.weights.gguf; sys.exit('numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_missing_file_is_not_found(tmp_path) -> None:
    with pytest.raises(ModelNotFound, match="nowhere"):
        open_gguf(tmp_path / "nowhere.gguf")


def test_folder_is_refused(tmp_path) -> None:
    with pytest.raises(UserError, match="cannot read"):
        open_gguf(tmp_path)


K = raw.scalar("k", raw.U32, 1)
HUGE = (2**32, 2**40, 2**63, 2**64 - 1)
REFUSED = {
    "empty": (b"", CorruptModel, "not a GGUF file"),
    "other file": (b"PK\3\4" + bytes(40), CorruptModel, "not a GGUF file"),
    "big-endian": (b"GGUF\0\0\0\3" + bytes(40), UnsupportedModel, "big-endian"),
    "version 1": (raw.header(version=1), UnsupportedModel, "version 1"),
    "version 4": (raw.header(version=4), UnsupportedModel, "version 4.*reads 2 and 3"),
    "no counts": (b"GGUF" + raw.u32(3), CorruptModel, "header"),
    "tensor count": (raw.header(tensors=3) + bytes(64), CorruptModel, "3 tensors cannot be in"),
    "key count": (raw.header(keys=9) + bytes(64), CorruptModel, "9 keys cannot be in"),
    "too many keys": (raw.header(keys=100_001) + bytes(2_000_000), CorruptModel, "limit of 100000"),
    "too many tensors": (raw.header(tensors=100_001) + bytes(4_000_000), CorruptModel, "limit of 100000"),
    "key twice": (raw.whole([K, K]), CorruptModel, "key 'k': it is there twice"),
    "empty key": (raw.whole([raw.scalar("", raw.U32, 1)]), CorruptModel, "key 1 of 1: the name is empty"),
    "long key": (raw.whole([raw.scalar("k" * 1025, raw.U32, 1)]), CorruptModel, "1025 bytes exceeds"),
    "key not UTF-8": (raw.whole([raw.scalar(b"\xfe", raw.U32, 1)]), CorruptModel, "not UTF-8"),
    "value type": (
        raw.whole([raw.text("k") + raw.u32(13) + bytes(8)]),
        CorruptModel,
        "13 is not a value type",
    ),
    "array type": (
        raw.whole([raw.text("k") + raw.u32(9) + raw.u32(77) + bytes(8)]),
        CorruptModel,
        "77 is not",
    ),
    "nested array": (
        raw.whole([raw.text("k") + raw.u32(9) + raw.u32(9) + raw.u64(1) + raw.u32(9)]),
        UnsupportedModel,
        "key 'k': .*array of arrays",
    ),
    "string in array": (
        raw.whole([raw.text("k") + raw.u32(9) + raw.u32(8) + raw.u64(2) + raw.text("x") + raw.text("y", 99)]),
        CorruptModel,
        "key 'k': string 2 of 2 goes beyond",
    ),
    "alignment 0": (
        raw.whole([raw.scalar("general.alignment", raw.U32, 0)]),
        CorruptModel,
        "0 is not a power",
    ),
    "alignment 48": (
        raw.whole([raw.scalar("general.alignment", raw.U32, 48)]),
        CorruptModel,
        "48 is not a power",
    ),
    "alignment 2^31": (
        raw.whole([raw.scalar("general.alignment", raw.U32, 2**31)]),
        CorruptModel,
        "not a power",
    ),
    "alignment text": (
        raw.whole([raw.scalar("general.alignment", raw.STRING, "32")]),
        CorruptModel,
        "'32' is not",
    ),
    "alignment bool": (
        raw.whole([raw.scalar("general.alignment", raw.BOOL, True)]),
        CorruptModel,
        "True is not",
    ),
    "tensor twice": (
        raw.whole([], [raw.tensor("a", [1])] * 2, 64),
        CorruptModel,
        "tensor 'a': it is there twice",
    ),
    "empty name": (
        raw.whole([], [raw.tensor("", [1])], 64),
        CorruptModel,
        "tensor 1 of 1: the name is empty",
    ),
    "long name": (raw.whole([], [raw.tensor("a" * 257, [1])], 64), CorruptModel, "257 bytes exceeds"),
    "no dimension": (
        raw.whole([], [raw.tensor("abcdefgh", [])], 64),
        CorruptModel,
        "0 dimensions, not 1 to 4",
    ),
    "5 dimensions": (raw.whole([], [raw.tensor("a", [1] * 5)], 64), CorruptModel, "5 dimensions, not 1 to 4"),
    "zero dimension": (raw.whole([], [raw.tensor("a", [4, 0])], 64), CorruptModel, r"\[4, 0\] has a zero"),
    "half block": (
        raw.whole([], [raw.tensor("a", [33], 8)], 64),
        CorruptModel,
        r"33 weights.*blocks of 32 \(Q8_0\)",
    ),
    "removed type": (
        raw.whole([], [raw.tensor("a", [32], 4)], 64),
        UnsupportedModel,
        "'a': its type is Q4_2",
    ),
    "unknown type": (
        raw.whole([], [raw.tensor("a", [32], 99)], 64),
        UnsupportedModel,
        "'a': unknown type 99",
    ),
    "offset": (
        raw.whole([], [raw.tensor("a", [1], 0, 8)], 64),
        CorruptModel,
        "offset 8 is not a multiple of 32",
    ),
    "data cut off": (raw.whole([], [raw.tensor("a", [17])], 64), CorruptModel, "tensor 'a': its 68 bytes at"),
    "overflowing shape": (
        raw.whole([], [raw.tensor("a", [2**32, 2**31, 2, 1])], 64),
        CorruptModel,
        f"its {2**66} bytes at",
    ),
}
for huge in HUGE:
    REFUSED |= {
        f"{huge} tensors": (
            raw.header(tensors=huge) + bytes(64),
            CorruptModel,
            f"{huge} tensors exceed",
        ),
        f"{huge} keys": (raw.header(keys=huge) + bytes(64), CorruptModel, f"{huge} keys exceed"),
        f"key of {huge} bytes": (
            raw.header(keys=1) + raw.u64(huge) + bytes(64),
            CorruptModel,
            "exceeds the limit",
        ),
        f"string of {huge} bytes": (
            raw.whole([raw.text("k") + raw.u32(8) + raw.text("x", huge)]),
            CorruptModel,
            "key 'k': a string of .* exceeds",
        ),
        f"array of {huge} strings": (
            raw.whole([raw.array("k", 8, ["x"], huge)]),
            CorruptModel,
            "strings exceed",
        ),
        f"array of {huge} numbers": (
            raw.whole([raw.array("k", 5, [1], huge)]),
            CorruptModel,
            "values cannot be",
        ),
        f"array string of {huge} bytes": (
            raw.whole(
                [raw.text("k") + raw.u32(9) + raw.u32(8) + raw.u64(2) + raw.text("", huge) + raw.text("x")]
            ),
            CorruptModel,
            "string . of 2 goes beyond",
        ),
        f"{huge} columns": (
            raw.whole([], [raw.tensor("a", [huge, 1])], 64),
            CorruptModel,
            "go beyond the end",
        ),
        f"{huge} rows": (raw.whole([], [raw.tensor("a", [1, huge])], 64), CorruptModel, "go beyond the end"),
        f"offset {huge}": (
            raw.whole([], [raw.tensor("a", [1], 0, huge)], 64),
            CorruptModel,
            "go beyond|multiple",
        ),
    }


@pytest.mark.parametrize("case", REFUSED)
def test_bad_file_is_refused_naming_file_place_and_problem(write, case) -> None:
    content, kind, message = REFUSED[case]
    with pytest.raises(CorralError, match=message) as caught:
        open_gguf(write(content))
    assert type(caught.value) is kind
    assert "m.gguf" in str(caught.value)
    assert len(str(caught.value)) < 500


@pytest.mark.model
def test_vocabulary_of_262144_tokens_is_decoded(gemma3_path) -> None:
    with open_gguf(gemma3_path) as file:
        tokens = file.metadata["tokenizer.ggml.tokens"].tolist()
        assert (len(tokens), tokens[2], tokens[105], tokens[-1]) == (
            262144,
            "<bos>",
            "<start_of_turn>",
            "<unused6241>",
        )
        assert np.asarray(file.metadata["tokenizer.ggml.scores"]).shape == (262144,)
