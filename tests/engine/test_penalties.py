from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from corral.engine.penalties import PenaltyCounts, wants_penalties
from corral.types import SamplingParams

tokens = st.lists(st.integers(0, 6), max_size=30)


@given(tokens, tokens, st.one_of(st.none(), st.just(-1), st.integers(1, 12)))
def test_counts_kept_up_to_date_equal_counts_made_anew(prompt, reply, window):
    known = prompt.copy()
    counts = PenaltyCounts(known, window)
    for token in reply:
        known.append(token)
        counts.push()
    if window is None:
        expected = {token: Counter(reply)[token] for token in known}
    else:
        expected = dict(Counter(known if window < 0 else known[-window:]))
    assert dict(zip(counts.ids.tolist(), counts.counts.tolist(), strict=True)) == expected


@given(tokens, tokens, tokens, st.one_of(st.none(), st.just(-1), st.integers(1, 12)))
def test_counts_after_drafts_equal_counts_after_saying_them(prompt, reply, drafts, window):
    known = prompt.copy()
    counts = PenaltyCounts(known, window)
    for token in reply:
        known.append(token)
        counts.push()
    before = dict(zip(counts.ids.tolist(), counts.counts.tolist(), strict=True))
    found = [
        dict(zip(ids.tolist(), numbers.tolist(), strict=True))
        for ids, numbers in list(counts.with_each(drafts))[1:]
    ]
    assert dict(zip(counts.ids.tolist(), counts.counts.tolist(), strict=True)) == before
    for after in found:
        known.append(drafts[len(known) - len(prompt) - len(reply)])
        counts.push()
        assert after == dict(zip(counts.ids.tolist(), counts.counts.tolist(), strict=True))
    assert len(found) == len(drafts)


def test_arrays_grow_beyond_their_first_size():
    counts = PenaltyCounts(list(range(500)), None)
    assert sorted(counts.ids.tolist()) == list(range(500))


def test_neutral_penalties_cost_nothing():
    assert not wants_penalties(SamplingParams())
    assert not wants_penalties(SamplingParams(repetition_penalty=1.3, penalty_window=0))
    assert wants_penalties(SamplingParams(frequency_penalty=-0.1))
