import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corral.errors import CorruptModel
from corral.store.manifest import CONFIG, MODEL, Layer, Manifest, digest_hex

HEX = "ab" * 32


def test_encode_then_parse_gives_the_same_manifest():
    manifest = Manifest(Layer(CONFIG, f"sha256:{HEX}", 5), (Layer(MODEL, f"sha256:{'0' * 64}", 7),))
    assert Manifest.parse(manifest.encode()) == manifest
    assert manifest.size == 12
    body = json.loads(manifest.encode())
    assert body["schemaVersion"] == 2 and body["layers"][0]["mediaType"] == MODEL


HOSTILE = f"sha256:|sha256:../../etc/passwd|sha256-{HEX}|sha256:{HEX.upper()}|sha256:{HEX}0|sha512:{HEX}"


@pytest.mark.parametrize("digest", ["", *HOSTILE.split("|"), f"/sha256:{HEX}", f"sha256:{HEX}\n"])
def test_digest_that_is_none_is_refused_before_it_becomes_a_path(digest):
    with pytest.raises(CorruptModel):
        digest_hex(digest)
    body = {"config": {"mediaType": CONFIG, "digest": digest, "size": 1}, "layers": []}
    with pytest.raises(CorruptModel):
        Manifest.parse(json.dumps(body).encode())


GOOD = {"mediaType": MODEL, "digest": f"sha256:{HEX}", "size": 1}


@pytest.mark.parametrize(
    "body",
    [b"", b"[]", b"null", b"{", b"\xff\xfe", b"[" * 100_000, b"{}", b" " * (4 << 20) + b"{}"]
    + [
        json.dumps(value).encode()
        for value in (
            {"layers": []},
            {"config": GOOD, "layers": 3},
            {"config": GOOD, "layers": None},
            {"config": GOOD, "layers": ["x"]},
            {"config": GOOD, "layers": [GOOD] * 10_001},
            {"config": GOOD, "layers": [{**GOOD, "size": -1}]},
            {"config": GOOD, "layers": [{**GOOD, "size": True}]},
            {"config": GOOD, "layers": [{**GOOD, "size": 1 << 70}]},
            {"config": GOOD, "layers": [{**GOOD, "digest": None}]},
            {"config": GOOD, "layers": [{**GOOD, "mediaType": 5}]},
        )
    ],
)
def test_hostile_manifest_is_a_corrupt_model(body):
    with pytest.raises(CorruptModel):
        Manifest.parse(body)


@given(
    st.recursive(st.none() | st.integers() | st.text(), lambda s: st.lists(s) | st.dictionaries(st.text(), s))
)
def test_any_json_is_a_manifest_or_corrupt(value):
    with pytest.raises(CorruptModel):
        Manifest.parse(json.dumps({"config": value, "layers": [value]}).encode())
