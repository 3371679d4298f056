"""What a step costs, learnt from the steps that were made, and what the next one may therefore take on."""

from collections import OrderedDict, deque
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from corral.engine.scheduler import Demand

# A step that decodes may take so many times as long again for every reply that somebody waits for: twice as
# long at the median of a noisy machine, and within three times nearly always.
_STRETCH = 1.0
LEAST_READING = 4  # tokens; fewer would only waste the step's fixed cost
_MARGIN = 1.25  # a draft has to be so much better than none

_KEPT = 8  # steps of a kind; their median is what counts, so that one held up by a neighbour does not
_KINDS = 64  # of steps; more are not kept
_AGEING = 100  # steps after which what was measured counts half
# What cannot be told apart is taken for the cost with the larger unit. A row's and a fetched token's are
# alike while all decode at like lengths: drafts are dear only once tried.
_DOUBT = 0.001
_UNITS = np.array((1.0, 1.0, 0.01, 1e-4, 1e-3))


@dataclass(frozen=True, slots=True)
class Costs:
    """Seconds of a step, of each token, of each logit row, of each earlier token that a token looks at.

    An earlier token is fetched once for all tokens of a step that look at it.
    """

    fixed: float = 0.0
    token: float = 0.0
    row: float = 0.0
    look: float = 0.0
    fetch: float = 0.0

    def decoding(self, demand: Demand) -> float:
        """What a step takes that only decodes."""
        each, context = self.token + self.row, self.look + self.fetch
        return self.fixed + each * demand.decoding + context * demand.context

    def draft(self, demand: Demand) -> float:
        """What one draft adds to that."""
        return self.token + self.row + self.look * demand.context / max(1, demand.decoding)


class Pace:
    """Costs fitted to the steps of every kind, and the limits that follow from them."""

    def __init__(self) -> None:
        self._kinds: OrderedDict[tuple[int, ...], _Kind] = OrderedDict()  # the latest at the end
        self._steps = 0
        self._costs = Costs()
        self._stale = False

    def learn(self, tokens: int, rows: int, looks: int, fetched: int, seconds: float) -> None:
        """A step took so long that had so many tokens, logit rows and earlier tokens to look at."""
        work = (tokens, rows, looks, fetched)
        self._steps += 1
        key = tuple(map(int.bit_length, work))
        kind = self._kinds.get(key)
        if kind is None:
            kind = self._kinds[key] = _Kind()
            if len(self._kinds) > _KINDS:
                self._kinds.popitem(last=False)
        self._kinds.move_to_end(key)
        self._stale |= tokens != rows or len(kind.steps) < _KEPT or self._steps % _KEPT == 0
        kind.steps.append((seconds / tokens, *work))
        kind.last = self._steps

    @property
    def costs(self) -> Costs:
        """Least squares of the relative errors, over the median step of each kind."""
        if self._stale:
            each, tokens, *work = np.array([kind.median() for kind in self._kinds.values()]).T
            ages = np.array([self._steps - kind.last for kind in self._kinds.values()])
            weights = 1 / (each * (1 + ages / _AGEING))
            steps = (np.stack((np.ones_like(tokens), tokens, *work)) * weights / tokens).T * _UNITS
            doubt = np.eye(len(_UNITS)) * (_DOUBT / each.min()) ** 2
            found = _solve(steps.T @ steps + doubt, steps.T @ (weights * each))
            self._costs = Costs(*(found * _UNITS).tolist())
            self._stale = False
        return self._costs

    def reading(self, demand: Demand) -> int | None:
        """Tokens of prompts that a step may read beside those that decode; None is no limit.

        One newcomer makes the others' steps about twice as long. Many at once are read nearly at
        full speed: then more people wait for a first token than for the next one.
        """
        if not demand.decoding or not demand.prefilling:
            return None
        costs = self.costs
        allowed = _STRETCH * demand.prefilling * costs.decoding(demand)
        each = costs.token + costs.look * demand.prefilled
        tokens = int((allowed - costs.fetch * demand.prefilled) / each) if each > 0 else 0
        return max(LEAST_READING, tokens)

    def drafting(self, demand: Demand) -> int | None:
        """Drafts that a step may verify in all; None is no limit. They make it longer for everybody."""
        draft = self.costs.draft(demand)
        if demand.decoding < 2 or not draft:
            return None
        share = _STRETCH / 2 if demand.prefilling else _STRETCH  # a prompt makes it longer too
        return int(share * self.costs.decoding(demand) / draft)

    def draft_chance(self, demand: Demand) -> float:
        """How likely a draft must be right for its row to give more tokens a second."""
        step = self.costs.decoding(demand)
        return _MARGIN * self.costs.draft(demand) * demand.decoding / step if step else 1.0


def _solve(matrix: NDArray[np.float64], target: NDArray[np.float64]) -> NDArray[np.float64]:
    """Solve normal equations without negative values: what would be negative is left out."""
    found = np.zeros(len(target))
    used = np.arange(len(target))
    while len(used):
        values = np.linalg.solve(matrix[np.ix_(used, used)], target[used])
        if values.min() >= 0:
            found[used] = values
            break
        used = np.delete(used, values.argmin())
    return found


class _Kind:
    """The last steps with about as much of all: seconds a token, tokens, rows, looks, tokens fetched."""

    def __init__(self) -> None:
        self.steps: deque[tuple[float, int, int, int, int]] = deque(maxlen=_KEPT)
        self.last = 0

    def median(self) -> tuple[float, int, int, int, int]:
        return sorted(self.steps)[(len(self.steps) - 1) // 2]
