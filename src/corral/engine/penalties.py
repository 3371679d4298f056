"""Which tokens a request's penalties look at, as arrays that are kept up to date instead of rebuilt."""

from collections.abc import Iterator

import numpy as np

from corral.executors.batch import I32
from corral.types import SamplingParams


def wants_penalties(params: SamplingParams) -> bool:
    """Whether any penalty changes anything."""
    neutral = params.repetition_penalty == 1 and not params.presence_penalty and not params.frequency_penalty
    return not neutral and params.penalty_window != 0


class PenaltyCounts:
    """The distinct tokens that repetition sees, and how often presence and frequency see each.

    Follows `tokens`, the sequence's own growing list: `push` is called after each token appended to it.
    """

    def __init__(self, tokens: list[int], window: int | None):
        self.tokens = tokens
        self.window = window
        self.size = 0
        self._places: dict[int, int] = {}
        self._ids = np.zeros(64, np.int32)
        self._counts = np.zeros(64, np.int32)
        seen = tokens if window is None or window < 0 else tokens[-window:]
        for token in seen:
            self._add(token, 0 if window is None else 1)

    def push(self) -> None:
        """Count the token just appended, and forget the one that left the window."""
        self._add(self.tokens[-1], 1)
        if self.window is not None and 0 < self.window < len(self.tokens):
            self._remove(self.tokens[-1 - self.window])

    @property
    def ids(self) -> I32:
        """Distinct tokens, each seen by the repetition penalty."""
        return self._ids[: self.size]

    @property
    def counts(self) -> I32:
        """How often presence and frequency see each."""
        return self._counts[: self.size]

    def with_each(self, drafts: list[int]) -> Iterator[tuple[I32, I32]]:
        """Ids and counts as they are, then as they would be after each of these tokens more."""
        yield self.ids, self.counts
        if not drafts:
            return
        counts = dict(zip(self.ids.tolist(), self.counts.tolist(), strict=True))
        known = self.tokens + drafts if self.window is not None and self.window > 0 else []
        for end, token in enumerate(drafts, len(self.tokens) + 1):
            counts[token] = counts.get(token, 0) + 1
            if self.window is not None and 0 < self.window < end:
                gone = known[end - 1 - self.window]
                counts[gone] -= 1
                if not counts[gone]:
                    del counts[gone]
            yield np.array(list(counts), np.int32), np.array(list(counts.values()), np.int32)

    def _add(self, token: int, count: int) -> None:
        place = self._places.get(token)
        if place is None:
            if self.size == len(self._ids):
                self._ids = np.concatenate((self._ids, np.zeros_like(self._ids)))
                self._counts = np.concatenate((self._counts, np.zeros_like(self._counts)))
            place = self._places[token] = self.size
            self._ids[place] = token
            self._counts[place] = 0
            self.size += 1
        self._counts[place] += count

    def _remove(self, token: int) -> None:
        place = self._places[token]
        self._counts[place] -= 1
        if self._counts[place]:
            return
        self.size -= 1  # the last entry takes the empty place
        last = int(self._ids[self.size])
        self._ids[place], self._counts[place] = last, self._counts[self.size]
        self._places[last] = place
        del self._places[token]
