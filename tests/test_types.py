"""What may be asked of sampling: every field in its range, whatever the number."""

import pytest

from corral.errors import InvalidRequest
from corral.types import MAX_STOP, MAX_STOP_LENGTH, Ending, SamplingParams, Scores


@pytest.mark.parametrize(
    "field",
    [
        *("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "presence_penalty"),
        *("frequency_penalty", "min_tokens", "max_tokens", "logprobs", "prompt_logprobs", "context"),
    ],
)
@pytest.mark.parametrize("value", [10**400, -(10**400), float("nan"), float("inf")], ids=str)
def test_number_out_of_range_is_refused_by_name(field: str, value: float) -> None:
    with pytest.raises(InvalidRequest) as caught:
        (Scores if "logprobs" in field else SamplingParams)(**{field: value}).validate()
    assert caught.value.param == {"context": "num_ctx"}.get(field, field)
    assert len(str(caught.value)) < 200


def test_stop_strings_are_few_and_short() -> None:
    Ending(stop=("x" * MAX_STOP_LENGTH,) * MAX_STOP).validate()
    for stop in (("x",) * (MAX_STOP + 1), ("x" * (MAX_STOP_LENGTH + 1),), ("",)):
        with pytest.raises(InvalidRequest, match="stop") as caught:
            Ending(stop=stop).validate()
        assert caught.value.param == "stop"
