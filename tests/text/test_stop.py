"""Stop strings in streamed text, against a search of the whole."""

import tracemalloc

from hypothesis import example, given, settings
from hypothesis import strategies as st

from corral.text.stop import StopMatcher

few = st.text("ab<", max_size=4)


def stopped_at(text: str, stops: list[str]) -> tuple[str, str | None]:
    """The text before the stop string that is complete first, found in the plainest way."""
    for end in range(1, len(text) + 1):
        ending = [stop for stop in stops if stop and text[:end].endswith(stop)]
        if ending:
            stop = max(ending, key=len)
            return text[: end - len(stop)], stop
    return text, None


@settings(max_examples=500, deadline=None)
@given(parts=st.lists(few, max_size=12), stops=st.lists(few, max_size=4))
@example(parts=["ab", "c"], stops=["abcd", "bc"])
@example(parts=["a"], stops=["a", "aa"])
def test_streamed_result_equals_search_of_the_whole(parts: list[str], stops: list[str]) -> None:
    matcher = StopMatcher(stops)
    out, ended = "", False
    for part in parts:
        text, now = matcher.push(part)
        assert not (ended and (text or not now))
        out, ended = out + text, now
    out += matcher.flush()
    expected, stop = stopped_at("".join(parts), stops)
    assert (out, matcher.matched, ended) == (expected, stop, stop is not None)


def test_nothing_is_held_back_that_cannot_become_a_stop_string() -> None:
    matcher = StopMatcher(["</s>"])
    assert matcher.push("hello <") == ("hello ", False)
    assert matcher.push("/") == ("", False)
    assert matcher.push("b>") == ("</b>", False)


def test_text_before_the_stop_string_is_passed_on_and_the_rest_dropped() -> None:
    matcher = StopMatcher(["END", "\n\n"])
    assert matcher.push("one\ntwo E") == ("one\ntwo ", False)
    assert matcher.push("ND three") == ("", True)
    assert matcher.matched == "END"
    assert matcher.push("more") == ("", True) and matcher.flush() == ""


def test_earlier_of_two_stop_strings_wins() -> None:
    assert StopMatcher(["c", "b"]).push("abc") == ("a", True)
    assert StopMatcher(["bc", "c"]).push("abc") == ("a", True)


def test_without_stop_strings_everything_passes() -> None:
    matcher = StopMatcher()
    assert matcher.push("<|im_end|>") == ("<|im_end|>", False) and matcher.flush() == ""


def test_memory_does_not_grow_with_the_square_of_a_stop_string() -> None:
    tracemalloc.start()
    try:
        matcher = StopMatcher(["ab" * 5_000])
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
    assert matcher.push("xab" * 3) == ("xabxabx", False)
