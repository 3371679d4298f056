"""Prompt-lookup speculation: a sequence's next tokens guessed from what it said before.

A step that verifies guesses computes a row for each. A row does not depend on its neighbours, and a draw only
on its logits and its place: what is sampled while guesses are right is what would have been without them.
"""

_LENGTHS = (3, 2)  # tokens that must agree with an earlier place, the longest first
_INDEXED = 4096  # of a prompt's last tokens, so that the first reply token never waits long for the index
_MOST = 12  # drafts at once
_FADING = 0.9  # how much an earlier guess counts beside the next one


class Drafts:
    """What followed when a sequence's latest tokens stood there before, and how often that came true.

    Follows `tokens`, the sequence's own growing list. Guesses are judged also where nothing was computed for
    them, so it is always known whether they would pay.
    """

    def __init__(self, tokens: list[int]):
        self._tokens = tokens
        self._after: dict[tuple[int, ...], int] = {}  # an n-gram: the place after its last occurrence
        self._indexed = max(0, len(tokens) - _INDEXED)
        self._guess: list[int] = []
        self._judged = len(tokens)
        self._right, self._tried = 1.0, 2.0

    @property
    def chance(self) -> float:
        """How likely a guess is right when those before it were."""
        return self._right / self._tried

    def propose(self, most: int, needed: float) -> list[int]:
        """At most so many next tokens, each at least as likely as `needed` to be kept."""
        self._judge()
        if needed >= 1:  # none is that likely; a guess that came true so far is good enough to be judged by
            self._guess = self._guess or self._look_up()
            return []
        self._guess = self._look_up()
        count, chance = 0, self.chance
        while count < min(most, len(self._guess)) and chance >= needed:
            count += 1
            chance *= self.chance
        return self._guess[:count]

    def _judge(self) -> None:
        """Compare the last guess with what has come since."""
        new = self._tokens[self._judged :]
        self._judged = len(self._tokens)
        for guess, token in zip(self._guess, new, strict=False):
            self._tried = self._tried * _FADING + 1
            self._right = self._right * _FADING + (guess == token)
            if guess != token:
                self._guess = []
                return
        self._guess = self._guess[len(new) :]

    def _index(self) -> None:
        """Note what the n-grams before the latest tokens were followed by."""
        tokens = self._tokens
        for end in range(self._indexed, len(tokens)):
            for length in _LENGTHS:
                if end >= length:
                    self._after[tuple(tokens[end - length : end])] = end
        self._indexed = len(tokens)

    def _look_up(self) -> list[int]:
        self._index()
        tokens = self._tokens
        for length in _LENGTHS:
            place = self._after.get(tuple(tokens[-length:]))
            if place is not None:
                guess = tokens[place : place + _MOST]
                return (guess * _MOST)[:_MOST]  # what reaches the end repeats itself
        return []
