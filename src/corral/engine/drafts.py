"""Prompt-lookup speculation: a sequence's next tokens guessed from what followed the same tokens before.

A step that verifies drafts computes a logit row for each of them beside the sequence's own. A row does not
depend on the rows beside it, and a sampled token depends only on its logits, the request's seed and its
index: as long as drafts are right, the tokens sampled are those that would have been sampled one by one.
"""

from collections.abc import Iterator

_LINKS = 16  # earlier places of two tokens that are looked at for one where three agree
_INDEXED = 4096  # of a prompt's last tokens, so that the first reply token never waits long for the index
_MOST = 12  # drafts at once
_FADING = 0.9  # how much an earlier guess counts beside the next one


class Drafts:
    """What followed when a sequence's latest two or three tokens stood there before; how often it came again.

    Follows `tokens`, the sequence's own growing list. Every guess is compared with the tokens that came,
    whether or not a step verified it: how likely the next one is to be right is always known. The index is
    that of LZ77: for two tokens the last place behind them, and for each place the one before it behind the
    same two.
    """

    def __init__(self, tokens: list[int]):
        self._tokens = tokens
        self._first = self._seen = max(1, len(tokens) - _INDEXED)  # the index has what lies between
        self._latest: dict[tuple[int, int], int] = {}
        self._earlier: list[int] = []  # of places first + 1, first + 2 and so on; 0 = there is none
        self.guess: list[int] = []  # what may follow these
        self._right, self._tried = 1.0, 2.0

    @property
    def chance(self) -> float:
        """How likely a guess is right when those before it were."""
        return self._right / self._tried

    def propose(self, most: int, needed: float) -> list[int]:
        """At most so many next tokens, each at least as likely as `needed` to be kept."""
        if self._seen < len(self._tokens):
            if self.guess:
                self._judge()
            self.guess = self._look_up()
        if not self.guess:
            return []
        count, chance = 0, self.chance
        while count < min(most, len(self.guess)) and chance >= needed:
            count += 1
            chance *= self.chance
        return self.guess[:count]

    def _judge(self) -> None:
        """Compare the last guess with what has come since."""
        for guess, token in zip(self.guess, self._tokens[self._seen :], strict=False):
            self._tried = self._tried * _FADING + 1
            self._right = self._right * _FADING + (guess == token)
            if guess != token:
                return

    def _look_up(self) -> list[int]:
        """What stood behind the last three tokens before, or else the last two; indexes what is new."""
        tokens, latest, earlier = self._tokens, self._latest, self._earlier
        for place in range(self._seen + 1, len(tokens) + 1):
            pair = tokens[place - 2], tokens[place - 1]
            earlier.append(latest.get(pair, 0))
            latest[pair] = place
        self._seen = len(tokens)
        if not earlier[-1]:
            return []
        three = tokens[-3:]
        place = next((at for at in self._places() if tokens[at - 3 : at] == three), earlier[-1])
        guess = tokens[place : place + _MOST]
        return (guess * _MOST)[:_MOST]  # what reaches the end repeats itself

    def _places(self) -> Iterator[int]:
        """The last places behind the latest two tokens but where they stand now, the latest first."""
        place = self._seen
        for _ in range(_LINKS):
            place = self._earlier[place - self._first - 1]
            if not place:
                return
            yield place
