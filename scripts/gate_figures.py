"""What gate.py decides by: samples of two builds, the interval of their ratio, and the table of all rows."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

LIMIT = 1.03  # new / old beyond which a row is lost; less is better in every row
CONFIDENCE = 0.95


class Verdict(StrEnum):
    """What the interval of a row's ratio says about the limit."""

    KEPT = "kept"  # all of it within
    UNSURE = "unsure"  # across: measure again
    LOST = "LOST"  # all of it beyond


@dataclass(frozen=True)
class Sample:
    """One measurement of both builds, made in turns; `ratio` is the median of new / old over those turns."""

    old: float
    new: float
    ratio: float


def sample_of(old: Sequence[float], new: Sequence[float]) -> Sample:
    """The sample of as many turns; turn i of both was made one right after the other."""
    ratio = statistics.median(b / a for a, b in zip(old, new, strict=True))
    return Sample(statistics.median(old), statistics.median(new), ratio)


@dataclass(frozen=True)
class Row:
    """One figure of both builds. `scale` makes a number in `unit` of a sample's; `exact` has no noise."""

    model: str
    isa: str
    what: str
    unit: str
    scale: float = 1.0
    exact: bool = False
    samples: tuple[Sample, ...] = ()

    @property
    def ratio(self) -> float:
        """The median of new / old."""
        return statistics.median(sample.ratio for sample in self.samples)

    @property
    def interval(self) -> tuple[float, float]:
        """Where the true ratio lies."""
        return interval([sample.ratio for sample in self.samples])

    @property
    def verdict(self) -> Verdict:
        """Whether the new build has lost too much."""
        low, high = self.interval
        return Verdict.LOST if low > LIMIT else Verdict.KEPT if high <= LIMIT else Verdict.UNSURE

    def cells(self) -> list[str]:
        """The row of the table."""
        old, new = (
            statistics.median(getattr(each, side) for each in self.samples) for side in ("old", "new")
        )
        figures = [f"{digits(value * self.scale)} {self.unit}".strip() for value in (old, new)]
        spread = "exact" if self.exact else "{:.3f} to {:.3f}".format(*self.interval)
        return [self.model, self.isa, self.what, *figures, f"{self.ratio:.3f}", spread, self.verdict]


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Two of the values that have the true median between them with CONFIDENCE, whatever the noise is like.

    The median is below the k-th smallest value, or above the k-th largest, only if fewer than k values fell
    on one side of it, which is as likely as so few heads in as many throws. Fewer than 6 values give their
    range, which has it with less confidence.
    """
    ordered, dropped = sorted(values), 0
    while 2 * _few_heads(len(ordered), dropped + 1) <= 1 - CONFIDENCE:
        dropped += 1
    return ordered[dropped], ordered[-1 - dropped]


def confidence(count: int) -> float:
    """The chance at least with which the interval of so many values holds the median."""
    return min(CONFIDENCE, 1 - 2 * _few_heads(count, 0))


def _few_heads(throws: int, heads: int) -> float:
    """The chance of at most so many heads."""
    return math.fsum(math.comb(throws, count) for count in range(heads + 1)) / 2.0**throws


def digits(value: float) -> str:
    """Three digits that count."""
    if value == 0:
        return "0"
    places = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:.{places}f}"


def table(rows: Sequence[Row], old: str, new: str) -> str:
    """All rows as Markdown."""
    headings = ["model", "kernels", "what", old, new, "new / old", "interval", ""]
    lines = [headings, ["---"] * len(headings), *(row.cells() for row in rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
