"""JSON in: what is wrong is named, whatever the body does to hide it."""

import pytest

from corral.errors import InvalidRequest
from corral.server.dialects.ollama_types import GenerateRequest
from corral.server.wire import decode


@pytest.mark.timeout(20)
@pytest.mark.parametrize("filler", [b" ", b"\r\n", b"\t"])
def test_long_filler_before_a_bad_value_is_refused_in_linear_time(filler: bytes) -> None:
    with pytest.raises(InvalidRequest, match="invalid JSON"):
        decode(b'{"format":' + filler * 500_000 + b"x", GenerateRequest)


@pytest.mark.parametrize("value", [b"NaN", b" -Infinity", b"[NaN", b" [ Infinity"])
def test_number_that_json_has_not_is_named(value: bytes) -> None:
    with pytest.raises(InvalidRequest, match=r"'format'.*not a JSON number") as caught:
        decode(b'{"model": "m", "format" :' + value + b"}", GenerateRequest)
    assert caught.value.param == "format"
