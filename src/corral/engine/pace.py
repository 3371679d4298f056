"""What a step costs, fitted to the steps that were made, and what the next one may therefore take on.

The seconds of a step are taken for a sum over its work,

    fixed + token * tokens + row * rows + attend * attended + read * context

of `tokens` computed, `rows` of logits, `attended` positions (those that each token sees, added up) and
`context` (the same, counted once for all tokens of a sequence, as their keys and values are read once). The
five costs are those, none negative, that make least

    sum over steps of ((fitted seconds / measured seconds - 1) / age)^2
        + sum over costs of (_RIDGE / fewest measured seconds a token * cost / unit)^2
"""

from collections import OrderedDict, deque
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from corral.engine.scheduler import Demand

# A step that decodes may take so many times as long again for each prompt that waits to be read. With one it
# then takes twice as long at the median, and on a noisy machine less than three times nearly always.
_STRETCH = 1.0
LEAST_READING = 4  # tokens; fewer would only waste the step's fixed cost
_MARGIN = 1.25  # a draft has to be so much better than none

_KEPT = 8  # steps of a kind; their median is fitted, so that one that another process held up does not count
_KINDS = 64  # of steps; more are not kept
_AGEING = 100  # steps after which a kind's median weighs half
# Work that has always grown together has costs that no fit can tell apart: the ridge gives all to the one of
# the larger unit. So while no step has verified drafts, rows and attending count as free, drafts as cheap.
_RIDGE = 0.001
_UNITS = np.array((1.0, 1.0, 0.01, 1e-4, 1e-3))  # of Costs' fields


@dataclass(frozen=True, slots=True)
class Costs:
    """Seconds that work takes: a step's own, and each unit of the four kinds above."""

    fixed: float = 0.0
    token: float = 0.0
    row: float = 0.0
    attend: float = 0.0
    read: float = 0.0

    def decoding(self, demand: Demand) -> float:
        """What a step takes that only decodes."""
        each, context = self.token + self.row, self.attend + self.read
        return self.fixed + each * demand.decoding + context * demand.context

    def draft(self, demand: Demand) -> float:
        """What one draft adds to that."""
        return self.token + self.row + self.attend * demand.context / max(1, demand.decoding)


class Pace:
    """Costs fitted to the steps of every kind, and the limits that follow from them."""

    def __init__(self) -> None:
        self._kinds: OrderedDict[tuple[int, ...], _Kind] = OrderedDict()  # the latest at the end
        self._steps = 0
        self._costs = Costs()
        self._stale = False

    def learn(self, tokens: int, rows: int, attended: int, context: int, seconds: float) -> None:
        """A step with this work took so long."""
        work = (tokens, rows, attended, context)
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
        """The best fit so far."""
        if self._stale:
            each, tokens, *work = np.array([kind.median() for kind in self._kinds.values()]).T
            ages = np.array([1 + (self._steps - kind.last) / _AGEING for kind in self._kinds.values()])
            weights = 1 / (each * ages)  # `each` = seconds a token, so what is fitted are relative errors
            steps = (np.stack((np.ones_like(tokens), tokens, *work)) * weights / tokens).T * _UNITS
            ridge = np.eye(len(_UNITS)) * (_RIDGE / each.min()) ** 2
            found = _solve(steps.T @ steps + ridge, steps.T @ (weights * each))
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
        each = costs.token + costs.attend * demand.prefilled
        tokens = int((allowed - costs.read * demand.prefilled) / each) if each > 0 else 0
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
    """Solve normal equations with no value negative: as long as one is, the least is taken for 0."""
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
    """The last steps with about the same work: seconds a token, tokens, rows, attended, context."""

    def __init__(self) -> None:
        self.steps: deque[tuple[float, int, int, int, int]] = deque(maxlen=_KEPT)
        self.last = 0

    def median(self) -> tuple[float, int, int, int, int]:
        return sorted(self.steps)[(len(self.steps) - 1) // 2]
