"""Finds the most users that a server still serves well."""

from collections.abc import Callable, Iterable

from corral.bench.figures import Patience, medians
from corral.bench.results import Measurement

FINE = 16  # the answer is exact up to here, and to one part in this many beyond


def search_users(
    patience: Patience, most: int, done: Iterable[Measurement], run: Callable[[int], Measurement | None]
) -> int:
    """The most users who bear the standard workload, beginning from what is `done`.

    `run` measures a number of users; None where it could not.
    """
    known: dict[int, bool] = {}
    for users, runs in _by_users(done).items():
        known[users] = patience.met(medians(runs))

    def usable(users: int) -> bool:
        if users not in known:
            measured = run(users)
            known[users] = measured is not None and patience.met(measured.figures)
        return known[users]

    bad = min((users for users, fine in known.items() if not fine), default=0)
    good = max((users for users, fine in known.items() if fine and (not bad or users < bad)), default=0)
    return most_usable(usable, most, good, bad)


def most_usable(usable: Callable[[int], bool], most: int, good: int = 0, bad: int = 0) -> int:
    """The most users up to `most` for whom `usable` holds: doubling, then halving the interval.

    `good` users are known to be usable, `bad` (if any) not to be; beyond a number that fails, all fail.
    """
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


def _by_users(done: Iterable[Measurement]) -> dict[int, list[dict[str, float]]]:
    found: dict[int, list[dict[str, float]]] = {}
    for each in done:
        if each.load == "standard":
            found.setdefault(each.users, []).append(each.figures)
    return found
