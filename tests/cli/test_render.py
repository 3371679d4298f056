from datetime import UTC, datetime, timedelta

import pytest

from corral.cli.render import go_duration, human_size, since, table, until


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1500, "1.5 KB"),
        (98_362_432, "98 MB"),
        (4_700_000_000, "4.7 GB"),
        (2e13, "20 TB"),
    ],
)
def test_sizes_are_decimal(size, text):
    assert human_size(size) == text


@pytest.mark.parametrize(
    ("nanoseconds", "text"),
    [
        (0, "0ns"),
        (1500, "1.5µs"),
        (12_300_000, "12.3ms"),
        (1_500_000_000, "1.5s"),
        (62.5e9, "1m2.5s"),
        (3661e9, "1h1m1s"),
    ],
)
def test_durations_are_gos(nanoseconds, text):
    assert go_duration(nanoseconds) == text


def moment(**delta):
    return (datetime.now(UTC) + timedelta(**delta)).isoformat()


def test_times_are_told_from_now():
    assert since(moment(days=-15)) == "2 weeks ago"
    assert since(moment(minutes=-1, seconds=-5)) == "1 minute ago"
    assert since(moment()) == "just now"
    assert since("yesterday") == "unknown"
    assert until(moment(minutes=4, seconds=30)) == "4 minutes from now"
    assert until(moment(days=292 * 365)) == "Forever"
    assert until(moment(seconds=-3)) == "Stopping..."


def test_columns_are_as_wide_as_their_widest_cell():
    assert table(("A", "BB"), [("long", "x"), ("s", "y")]) == "A       BB\nlong    x\ns       y"
