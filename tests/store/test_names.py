import pytest
from hypothesis import given
from hypothesis import strategies as st

from corral.errors import InvalidName
from corral.store.names import ModelName


@pytest.mark.parametrize(
    ("text", "path", "display"),
    [
        ("llama", "registry.ollama.ai/library/llama/latest", "llama:latest"),
        ("smollm2:135m", "registry.ollama.ai/library/smollm2/135m", "smollm2:135m"),
        ("me/mine:v1.2", "registry.ollama.ai/me/mine/v1.2", "me/mine:v1.2"),
        ("hub.io/me/mine", "hub.io/me/mine/latest", "hub.io/me/mine:latest"),
        ("localhost:5000/me/mine:x", "localhost:5000/me/mine/x", "localhost:5000/me/mine:x"),
        ("https://hub.io/library/mine", "hub.io/library/mine/latest", "hub.io/library/mine:latest"),
        (" _m ", "registry.ollama.ai/library/_m/latest", "_m:latest"),
    ],
)
def test_parse_fills_in_defaults_and_display_drops_them(text, path, display):
    name = ModelName.parse(text)
    assert (name.path, name.display) == (path, display)
    assert ModelName.parse(name.display) == name


HOSTILE = (
    "|:|m:|/m|a//m|..|../m|a/../m|m:..|m:../../x|.m|-m|a/b/c/d|a.b/c|m m|m:t:u|m@sha256:00|é|m\\x|http://|~m"
)


@pytest.mark.parametrize("text", [*HOSTILE.split("|"), "m\0", "m\nm", "x" * 81, "m:" + "x" * 81])
def test_parse_refuses_what_is_not_a_name(text):
    with pytest.raises(InvalidName):
        ModelName.parse(text)


@given(st.text(alphabet="aB1._-:/\\\0 \n~", max_size=30))
def test_every_parsed_name_stays_below_the_manifests_folder(text):
    try:
        path = ModelName.parse(text).path
    except InvalidName:
        return
    parts = path.split("/")
    assert len(parts) == 4
    assert all(part and part[0] not in ".-" and "\0" not in part and "\\" not in part for part in parts)
