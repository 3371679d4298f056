import math

import pytest

from corral.bench.figures import Patience, medians, quantile, reply_figures, stall_figures
from corral.bench.results import Measurement
from corral.bench.search import most_usable, search_users
from corral.bench.target import TimedReply


def reply(began, arrivals, tokens=None, asked=0, error=""):
    count = len(arrivals) if tokens is None else tokens
    ended = arrivals[-1] if arrivals else 0.0
    return TimedReply(began, tuple(arrivals), ended, 512, count, asked or count, "length", error)


def test_quantiles_lie_between_neighbours() -> None:
    assert [quantile([3, 1, 2], share) for share in (0, 0.25, 0.5, 1)] == [1, 1.5, 2, 3]
    assert quantile([7], 0.99) == 7
    assert quantile(range(101), 0.99) == 99


def test_figures_of_known_times_are_exact() -> None:
    first = reply(10.0, [11.0, 11.5, 12.0, 13.0])  # 3 tokens after the first in 2 s
    second = reply(10.0, [13.0, 13.5, 14.0, 14.5, 15.0])  # 4 in 2 s
    figures = reply_figures([first, second])
    assert figures["first_token_mean"] == figures["first_token_p50"] == 2.0
    assert figures["first_token_p99"] == pytest.approx(2.98)
    assert figures["first_token_max"] == 3.0
    assert (figures["user_rate"], figures["user_rate_min"]) == (1.75, 1.5)
    assert (figures["total_rate"], figures["wall"]) == (9 / 5, 5.0)
    assert (figures["inter_token_p50"], figures["inter_token_max"]) == (0.5, 1.0)
    assert figures["inter_token_p99"] == pytest.approx(0.97)
    assert (figures["tokens"], figures["prompt_tokens"]) == (4.5, 512)
    assert (figures["failures"], figures["early_stops"]) == (0, 0)


def test_pieces_of_several_tokens_count_by_the_servers_count() -> None:
    figures = reply_figures([reply(0.0, [1.0, 2.0, 3.0], tokens=9)])
    assert (figures["user_rate"], figures["total_rate"], figures["inter_token_p50"]) == (4.0, 3.0, 1.0)


def test_failed_and_early_replies_are_counted_and_failed_ones_left_out() -> None:
    figures = reply_figures([reply(0.0, [1.0, 2.0], asked=5), reply(0.0, [50.0], error="cut off")])
    assert (figures["failures"], figures["early_stops"], figures["first_token_max"]) == (1, 1, 1.0)
    assert reply_figures([reply(0.0, [], error="refused")]) == {"failures": 1, "early_stops": 0}


def test_a_reply_of_one_token_has_no_rate() -> None:
    assert reply_figures([reply(0.0, [1.0])])["user_rate"] == 0.0


def test_the_stall_of_a_newcomer_is_the_waits_that_its_wait_falls_into() -> None:
    streaming = reply(0.0, [1.0, 2.0, 2.5, 3.0, 3.5, 6.5, 7.0, 7.5])
    newcomer = reply(3.6, [6.4])
    figures = stall_figures([streaming], newcomer, quiet_from=2.0)
    assert (figures["before_p50"], figures["before_p99"]) == (0.5, 0.5)
    assert (figures["while_p50"], figures["while_p99"], figures["while_max"]) == (3.0, 3.0, 3.0)
    assert figures["stall_ratio"] == 6.0
    assert figures["newcomer_first_token"] == pytest.approx(2.8)


def test_limits_hold_for_every_user() -> None:
    fine = {"failures": 0, "user_rate_min": 5.0, "first_token_max": 10.0}
    assert Patience().met(fine)
    for worse in ({"failures": 1}, {"user_rate_min": 4.99}, {"first_token_max": 10.01}):
        assert not Patience().met(fine | worse)
    assert not Patience().met({})
    assert Patience(rate=1, first=math.inf).met(fine | {"user_rate_min": 1.0, "first_token_max": 99.0})


def test_medians_take_the_runs_that_have_a_figure() -> None:
    assert medians([{"a": 1.0, "b": 5.0}, {"a": 3.0}, {"a": 2.0}]) == {"a": 2.0, "b": 5.0}


@pytest.mark.parametrize("limit", [0, 1, 2, 3, 7, 16, 17, 20, 31])
@pytest.mark.parametrize("known", [0, 1, 5])
def test_the_search_finds_the_limit_of_a_server(limit, known) -> None:
    tried = []

    def usable(users):
        tried.append(users)
        return users <= limit

    assert most_usable(usable, 256, min(known, limit)) == limit
    assert len(tried) == len(set(tried)) <= 12


@pytest.mark.parametrize("limit", [40, 100, 200])
def test_a_large_limit_is_found_to_one_part_in_sixteen(limit) -> None:
    found = most_usable(lambda users: users <= limit, 256)
    assert limit * 15 / 16 - 1 <= found <= limit


def test_the_search_ends_at_the_most_it_may_try() -> None:
    assert most_usable(lambda users: users <= 1000, 48) == 48


def standard(users, rate, turn=0):
    figures = {"failures": 0, "user_rate_min": rate, "first_token_max": 1.0}
    return Measurement("a", "tiny", "standard", users, turn, figures)


def test_the_search_begins_between_what_is_measured_and_trusts_medians() -> None:
    done = [standard(4, 50), standard(4, 1, 1), standard(4, 40, 2), standard(8, 4)]
    tried = []

    def run(users):
        tried.append(users)
        return standard(users, 30 / users)

    assert search_users(Patience(rate=5.0), 256, done, run) == 6
    assert tried == [6, 7]
    assert search_users(Patience(), 256, [], lambda users: None) == 0
