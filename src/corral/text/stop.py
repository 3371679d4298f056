"""Finds stop strings in text that comes in pieces."""

from collections.abc import Sequence

__all__ = ["StopMatcher"]


class StopMatcher:
    """Lets text through until a stop string is complete; keeps back what may still become one.

    The stop string whose last character comes first wins (of several that end there, the longest), so the
    result does not depend on how the text is cut into pieces.
    """

    def __init__(self, stops: Sequence[str] = ()):
        self.matched: str | None = None  # the stop string that was found
        self._stops = [stop for stop in stops if stop]
        self._firsts = {stop[0] for stop in self._stops}
        self._longest = max(map(len, self._stops), default=0) - 1  # unfinished
        self._held = ""

    def push(self, text: str) -> tuple[str, bool]:
        """The text that is safe to pass on, and whether a stop string has ended it."""
        if not self._stops:
            return text, False
        if self.matched is not None:
            return "", True
        text = self._held + text
        found = [(start + len(stop), start, stop) for stop in self._stops if (start := text.find(stop)) >= 0]
        if found:
            _, start, self.matched = min(found)
            self._held = ""
            return text[:start], True
        keep = self._unfinished(text)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep], False

    def flush(self) -> str:
        """The text still kept back, when no more will come."""
        held, self._held = self._held, ""
        return held

    def _unfinished(self, text: str) -> int:
        """The length of the longest end of the text that begins a stop string."""
        for start in range(max(0, len(text) - self._longest), len(text)):
            if text[start] in self._firsts:
                end = text[start:]
                if any(stop.startswith(end) for stop in self._stops):
                    return len(end)
        return 0
