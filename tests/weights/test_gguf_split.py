"""Models in several GGUF files."""

import shutil

import gguf
import gguf_bytes as raw
import numpy as np
import pytest

from corral.errors import CorralError, CorruptModel
from corral.weights.gguf_split import part_paths
from corral.weights.open import open_source


@pytest.fixture
def parts(tmp_path):
    """Five tensors in three files, written by the gguf package."""
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama", split_max_tensors=2)
    writer.add_block_count(7)
    for n in range(5):
        writer.add_tensor(f"t{n}", np.full((2, 32), n, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return sorted(tmp_path.glob("*.gguf"))


def test_any_part_opens_the_whole_model(parts) -> None:
    assert len(parts) == 3
    for path in parts:
        with open_source(path) as source:
            assert source.fields.integer("block_count", 9) == 7
            assert source.size == sum(part.stat().st_size for part in parts)
            assert [source.tensor(name).dequantize()[0, 0] for name in sorted(source.tensors)] == [
                0,
                1,
                2,
                3,
                4,
            ]
            source.release("t4")


def test_missing_parts_are_named(parts) -> None:
    parts[0].unlink()
    parts[2].unlink()
    message = (
        "2 of the model's 3 parts are missing beside m-00002-of-00003.gguf: m-00001-of-00003.gguf, m-00003"
    )
    with pytest.raises(CorruptModel, match=message):
        open_source(parts[1])


def test_part_by_another_name_says_what_to_do(parts, tmp_path) -> None:
    other = parts[0].rename(tmp_path / "m.gguf")
    with pytest.raises(CorruptModel, match=r"one of 3 parts, which its name does not: .*or merge them"):
        open_source(other)


def test_a_part_in_another_s_place_is_refused(parts) -> None:
    shutil.copy(parts[1], parts[2])
    with pytest.raises(CorruptModel, match=r"m-00003-of-00003.gguf says that it is part 1"):
        open_source(parts[0])


SPLIT = "m-0000{}-of-00002.gguf"


def part(tmp_path, number: int, keys: dict[str, tuple[int, object]], tensor: str) -> None:
    values = {
        "split.no": (raw.U16, number),
        "split.count": (raw.U16, 2),
        "split.tensors.count": (raw.I32, 2),
        **keys,
    }
    scalars = [raw.scalar(key, kind, value) for key, (kind, value) in values.items()]
    scalars.append(raw.scalar("general.architecture", raw.STRING, "llama"))
    raw.write(tmp_path / SPLIT.format(number + 1), raw.whole(scalars, [raw.tensor(tensor, [4])], data=16))


LIES = {
    "more parts": ({"split.count": (raw.U16, 3)}, {}, "b", "one of 3 parts"),
    "2^16 parts": ({"split.count": (raw.U32, 1 << 16)}, {}, "b", "one of 65536 parts"),
    "no number": ({"split.count": (raw.STRING, "2")}, {}, "b", "one of '2' parts"),
    "negative": ({"split.count": (raw.I32, -1)}, {}, "b", "one of -1 parts"),
    "second says other": ({}, {"split.count": (raw.U16, 3)}, "b", r"part 1 \(from 0\) of 3"),
    "same part twice": ({}, {"split.no": (raw.U16, 0)}, "b", r"part 0 \(from 0\) of 2"),
    "tensor twice": ({}, {}, "a", "another part has too: a"),
    "fewer tensors": (
        {"split.tensors.count": (raw.I32, 3)},
        {},
        "b",
        "promises 3 tensors, the 2 parts have 2",
    ),
}


@pytest.mark.parametrize("case", LIES)
def test_parts_that_lie_are_refused(tmp_path, case) -> None:
    first, second, tensor, message = LIES[case]
    part(tmp_path, 0, first, "a")
    part(tmp_path, 1, second, tensor)
    with pytest.raises(CorruptModel, match=message):
        open_source(tmp_path / SPLIT.format(1))


def test_honest_parts_are_read_and_other_names_are_no_parts(tmp_path) -> None:
    part(tmp_path, 0, {}, "a")
    part(tmp_path, 1, {}, "b")
    with open_source(tmp_path / SPLIT.format(2)) as source:
        assert list(source.tensors) == ["a", "b"]
    for name in ("m.gguf", "m-00001-of-00001.gguf", "m-00001-of-99999.gguf", "m-1-of-2.gguf"):
        assert part_paths(tmp_path / name) == [tmp_path / name]


def test_nothing_but_corral_errors_for_a_part_cut_off_anywhere(parts) -> None:
    content = parts[1].read_bytes()
    for length in range(0, len(content) - 512, 7):
        parts[1].write_bytes(content[:length])
        with pytest.raises(CorralError):
            open_source(parts[0])
