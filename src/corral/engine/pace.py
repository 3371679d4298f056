"""What a step costs, learnt from the steps that were made, and what the next one may therefore take on."""

from collections import deque
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from corral.engine.scheduler import Crowd

# A step that decodes may take so many times as long again for every reply that somebody waits for: twice as
# long at the median of a noisy machine, and within three times nearly always.
_STRETCH = 1.0
LEAST_READING = 4  # tokens; fewer would only waste the step's fixed cost
_MARGIN = 1.25  # a draft has to be so much better than none

_KEPT = 8  # steps of a size; their median is what counts, so that one held up by a neighbour does not
_AGEING = 100  # steps after which what was measured counts half
# Costs that cannot be told from each other are the fixed one and a token's: drafts are dear only once tried.
_DOUBT = 0.003
_UNITS = np.array((1.0, 1.0, 0.1, 1e-4))


@dataclass(frozen=True, slots=True)
class Costs:
    """Seconds of a step, of each token, of each logit row, of each earlier token that a token looks at."""

    fixed: float = 0.0
    token: float = 0.0
    row: float = 0.0
    look: float = 0.0

    def decoding(self, crowd: Crowd) -> float:
        """What a step takes that only decodes."""
        return self.fixed + (self.token + self.row) * crowd.decoding + self.look * crowd.held

    def draft(self, crowd: Crowd) -> float:
        """What one draft adds to that."""
        return self.token + self.row + self.look * crowd.held / max(1, crowd.decoding)


class Pace:
    """Costs fitted to the steps of every size, and the limits that follow from them."""

    def __init__(self) -> None:
        self._sizes: dict[tuple[int, bool], _Size] = {}
        self._steps = 0
        self._costs = Costs()
        self._stale = False

    def learn(self, tokens: int, rows: int, looks: int, seconds: float) -> None:
        """A step took so long that had so many tokens, logit rows and earlier tokens to look at."""
        self._steps += 1
        key = tokens.bit_length(), tokens == rows
        size = self._sizes.get(key)
        if size is None:
            size = self._sizes[key] = _Size()
        self._stale |= tokens != rows or len(size.steps) < _KEPT or self._steps % _KEPT == 0
        size.steps.append((seconds / tokens, tokens, rows, looks))
        size.last = self._steps

    @property
    def costs(self) -> Costs:
        """Least squares of the relative errors, over the median step of each size."""
        if self._stale:
            each, tokens, rows, looks = np.array([size.median() for size in self._sizes.values()]).T
            ages = np.array([self._steps - size.last for size in self._sizes.values()])
            weights = 1 / (each * (1 + ages / _AGEING))
            steps = np.stack((1 / tokens, np.ones_like(tokens), rows / tokens, looks / tokens), axis=1)
            steps = np.concatenate((steps * _UNITS * weights[:, None], np.eye(4) * (_DOUBT / each.min())))
            found = _solve(steps, np.concatenate((weights * each, np.zeros(4))))
            self._costs = Costs(*(found * _UNITS).tolist())
            self._stale = False
        return self._costs

    def reading(self, crowd: Crowd, drafts: int = 0) -> int | None:
        """Tokens of prompts that a step may read beside those that decode; None is no limit.

        One newcomer makes the others' steps about twice as long. Many at once are read nearly at
        full speed: then more people wait for a first token than for the next one.
        """
        if not crowd.decoding or not crowd.readers:
            return None
        costs = self.costs
        allowed = _STRETCH * crowd.readers * costs.decoding(crowd) - drafts * costs.draft(crowd)
        each = costs.token + costs.look * crowd.place
        return max(LEAST_READING, int(allowed / each)) if each > 0 else LEAST_READING

    def draft_chance(self, crowd: Crowd) -> float:
        """How likely a draft must be right for its row to give more tokens a second."""
        step = self.costs.decoding(crowd)
        return _MARGIN * self.costs.draft(crowd) * crowd.decoding / step if step else 1.0


def _solve(matrix: NDArray[np.float64], target: NDArray[np.float64]) -> NDArray[np.float64]:
    """Least squares without negative values: what would be negative is left out."""
    found = np.zeros(matrix.shape[1])
    used = np.arange(matrix.shape[1])
    while len(used):
        values = np.linalg.lstsq(matrix[:, used], target, rcond=None)[0]
        if values.min() >= 0:
            found[used] = values
            break
        used = np.delete(used, values.argmin())
    return found


class _Size:
    """The last steps of about one size: seconds a token, tokens, rows, looks."""

    def __init__(self) -> None:
        self.steps: deque[tuple[float, int, int, int]] = deque(maxlen=_KEPT)
        self.last = 0

    def median(self) -> tuple[float, int, int, int]:
        return sorted(self.steps)[(len(self.steps) - 1) // 2]
