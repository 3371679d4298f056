"""What a step costs, learnt from the steps that were made, and what the next one may therefore take on."""

from collections import deque

import numpy as np

# A step that decodes may take so many times as long again for every reply that somebody waits for.
_STRETCH = 1.3
LEAST_READING = 8  # tokens; fewer would only waste the step's fixed cost

_KEPT = 8  # steps of a size; their median is what counts, so that one held up by a neighbour does not
_AGEING = 200  # steps after which what was measured counts half
# Where a row's own cost cannot be told from the fixed one, it is small: drafts are dear only once tried.
_UNITS = np.array((1.0, 1.0, 0.1))


class StepCost:
    """seconds = fixed + per_token * tokens + per_row * rows with logits, fitted to steps of every size."""

    def __init__(self) -> None:
        self._sizes: dict[tuple[int, bool], _Size] = {}
        self._steps = 0
        self._costs = (0.0, 0.0, 0.0)
        self._stale = False

    def learn(self, tokens: int, rows: int, seconds: float) -> None:
        """A step of this size took so long."""
        self._steps += 1
        size = self._sizes.setdefault((tokens.bit_length(), tokens == rows), _Size())
        size.steps.append((seconds / tokens, tokens, rows))
        size.last = self._steps
        self._stale = True

    def seconds(self, tokens: int, rows: int) -> float:
        """What a step of this size should take."""
        fixed, per_token, per_row = self._fit()
        return fixed + per_token * tokens + per_row * rows

    def reading(self, decoding: int, readers: int, drafts: int = 0) -> int | None:
        """Tokens of prompts that a step may read beside those that decode; None is no limit.

        One newcomer makes the others' steps little more than twice as long. Many at once are read nearly at
        full speed: then more people wait for a first token than for the next one.
        """
        if not decoding or not readers:
            return None
        _, per_token, per_row = self._fit()
        allowed = _STRETCH * readers * self.seconds(decoding, decoding) - drafts * (per_token + per_row)
        return max(LEAST_READING, int(allowed / per_token)) if per_token > 0 else LEAST_READING

    def _fit(self) -> tuple[float, float, float]:
        """Least squares of the relative errors, over the median step of each size."""
        if self._stale:
            medians = [size.median() for size in self._sizes.values()]
            ages = np.array([self._steps - size.last for size in self._sizes.values()])
            steps = np.array([(1 / tokens, 1.0, rows / tokens) for _, tokens, rows in medians])
            weights = 1 / (np.array([each for each, _, _ in medians]) * (1 + ages / _AGEING))
            scaled = steps * _UNITS * weights[:, None]
            target = weights * [each for each, _, _ in medians]
            found = np.linalg.lstsq(scaled, target, rcond=None)[0] * _UNITS
            fixed, per_token, per_row = np.maximum(found, 0.0).tolist()
            self._costs = (fixed, per_token, per_row)
            self._stale = False
        return self._costs


class _Size:
    """The last steps of about one size: seconds a token, tokens, rows."""

    def __init__(self) -> None:
        self.steps: deque[tuple[float, int, int]] = deque(maxlen=_KEPT)
        self.last = 0

    def median(self) -> tuple[float, int, int]:
        return sorted(self.steps)[(len(self.steps) - 1) // 2]
