"""Figures of a measurement, from the times of its replies."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median

from corral.bench.target import TimedReply


def quantile(values: Iterable[float], share: float) -> float:
    """The value below which `share` of the values lie, between neighbours in proportion."""
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def reply_figures(replies: Sequence[TimedReply]) -> dict[str, float]:
    """The figures of users side by side. Failed replies are counted, and left out of all other figures."""
    good = [reply for reply in replies if not reply.error]
    figures: dict[str, float] = {
        "failures": len(replies) - len(good),
        "early_stops": sum(reply.tokens < reply.asked for reply in good),
    }
    if not good:
        return figures
    firsts, rates = [reply.first for reply in good], [reply.rate for reply in good]
    gaps = [gap for reply in good for gap in reply.gaps]
    wall = max(reply.ended for reply in good) - min(reply.began for reply in good)
    figures |= {
        "first_token_mean": fmean(firsts),
        "first_token_p50": median(firsts),
        "first_token_p99": quantile(firsts, 0.99),
        "first_token_max": max(firsts),
        "user_rate": median(rates),
        "user_rate_min": min(rates),
        "total_rate": sum(reply.tokens for reply in good) / wall if wall > 0 else 0.0,
        "wall": wall,
        "prompt_tokens": fmean(reply.prompt_tokens for reply in good),
        "tokens": fmean(reply.tokens for reply in good),
    }
    if gaps:
        figures |= {
            "inter_token_p50": median(gaps),
            "inter_token_p99": quantile(gaps, 0.99),
            "inter_token_max": max(gaps),
        }
    return figures


def stall_figures(replies: Sequence[TimedReply], newcomer: TimedReply, quiet_from: float) -> dict[str, float]:
    """How a newcomer's long prompt holds up those who stream: times between their pieces before and while.

    Before is from `quiet_from` on; while counts every wait that any of the newcomer's wait falls into.
    """
    arrived = newcomer.arrivals[0]
    pairs = [pair for reply in replies for pair in zip(reply.arrivals, reply.arrivals[1:], strict=False)]
    before = [b - a for a, b in pairs if a >= quiet_from and b <= newcomer.began]
    while_ = [b - a for a, b in pairs if b > newcomer.began and a < arrived]
    figures = {"newcomer_first_token": newcomer.first}
    if before:
        figures |= {"before_p50": median(before), "before_p99": quantile(before, 0.99)}
    if while_:
        figures |= {
            "while_p50": median(while_),
            "while_p99": quantile(while_, 0.99),
            "while_max": max(while_),
        }
    if before and while_ and median(before) > 0:
        figures["stall_ratio"] = figures["while_p99"] / figures["before_p50"]
    return figures


@dataclass(frozen=True, slots=True)
class Patience:
    """The slowest service that a user still bears."""

    rate: float = 5.0  # tokens a second after the first, every user
    first: float = 10.0  # seconds to the first token, every user

    def met(self, figures: Mapping[str, float]) -> bool:
        """Whether no reply failed, and no user was served more slowly than this."""
        return (
            not figures.get("failures", 1)
            and figures.get("user_rate_min", 0.0) >= self.rate
            and figures.get("first_token_max", math.inf) <= self.first
        )


def medians(runs: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The median of each figure over the runs that have it."""
    names = dict.fromkeys(name for run in runs for name in run)
    return {name: median(run[name] for run in runs if name in run) for name in names}
