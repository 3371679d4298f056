"""Finds the most users that a server still serves well."""

from collections.abc import Callable

FINE = 16  # the answer is exact up to here, and to one part in this many beyond


def most_usable(usable: Callable[[int], bool], most: int, known: int = 0) -> int:
    """The most users up to `most` for whom `usable` holds: doubling, then halving the interval.

    `known` users are known to be usable. `usable` is taken to fail for all numbers beyond one that fails.
    """
    good, bad = known, 0
    while not bad and good < most:
        attempt = min(most, max(1, 2 * good))
        if usable(attempt):
            good = attempt
        else:
            bad = attempt
    while bad - good > max(1, good // FINE):
        middle = (good + bad) // 2
        if usable(middle):
            good = middle
        else:
            bad = middle
    return good
