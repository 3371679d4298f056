"""What the engine process sends: frames that are never too long."""

import socket

import pytest

from corral.engine import wire, worker
from corral.engine.admission import Limits, check_request
from corral.engine.protocol import Occupancy, Output, Step
from corral.errors import InvalidRequest
from corral.types import MAX_TOP_LOGPROBS, SamplingParams, Scores, TokenLogprob


def test_outputs_too_long_for_one_frame_go_in_several(monkeypatch) -> None:
    outputs = [Output(id=id, tokens=list(range(1000, 1100))) for id in range(3)]
    monkeypatch.setattr(wire, "MAX_FRAME", 600)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        worker._send_step(theirs, Step(Occupancy(running=3), outputs))
        found = []
        while len(found) < len(outputs):
            body = ours.recv(wire.frame_length(ours.recv(wire.HEADER)))
            step = wire.decode_from_engine(body)
            assert isinstance(step, Step) and step.occupancy.running == 3
            found += step.outputs
    assert found == outputs


@pytest.mark.parametrize("alternatives", [0, 1, MAX_TOP_LOGPROBS])
def test_the_longest_prompt_that_may_be_scored_fits_one_frame(alternatives: int) -> None:
    limits = Limits(context_length=1 << 26, vocab_size=1 << 20, kv_tokens=1 << 26)
    params, scores = SamplingParams(max_tokens=0), Scores(prompt_logprobs=alternatives)
    low, high = 1, 1 << 22
    while high - low > 1:
        middle = (low + high) // 2
        try:
            check_request([0] * middle, params, limits, scores)
            low = middle
        except InvalidRequest as error:
            assert "logprobs" in str(error)
            high = middle
    score = TokenLogprob(limits.vocab_size - 1, -12.345, ((limits.vocab_size - 1, -12.345),) * alternatives)
    assert low > 100_000
    one = len(wire.encode_frame(Step(Occupancy(), [Output(id=1, prompt_logprobs=[score] * 1000)])))
    assert one * low / 1000 < wire.MAX_FRAME
