"""Tables, sizes and times as text for people."""

from collections.abc import Sequence
from datetime import UTC, datetime

_SIZES = ((10**12, "TB"), (10**9, "GB"), (10**6, "MB"), (10**3, "KB"))
_PERIODS = (
    (365 * 86400, "year"),
    (30 * 86400, "month"),
    (7 * 86400, "week"),
    (86400, "day"),
    (3600, "hour"),
    (60, "minute"),
    (1, "second"),
)
FOREVER = 20 * 365 * 86400  # what is further away than this does not end


def table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table as lines of text, its columns left-aligned."""
    widths = [max(len(row[column]) for row in (headers, *rows)) for column in range(len(headers))]
    lines = [
        "    ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        for row in (headers, *rows)
    ]
    return "\n".join(line.rstrip() for line in lines)


def human_size(size: float) -> str:
    """`98 MB`, `4.7 GB`: decimal units, as Ollama prints them."""
    for unit, name in _SIZES:
        if size >= unit:
            value = size / unit
            return f"{value:.0f} {name}" if value >= 10 else f"{value:.1f} {name}"
    return f"{size:.0f} B"


def since(moment: str) -> str:
    """`2 weeks ago` for an ISO time."""
    seconds = _seconds_from_now(moment)
    return "unknown" if seconds is None else f"{_period(-seconds)} ago" if seconds < -1 else "just now"


def until(moment: str) -> str:
    """`4 minutes from now` for an ISO time, or `Forever`."""
    seconds = _seconds_from_now(moment)
    if seconds is None or seconds > FOREVER:
        return "Forever"
    return f"{_period(seconds)} from now" if seconds >= 1 else "Stopping..."


def go_duration(nanoseconds: float) -> str:
    """`1.5s`, `12.3ms`, `1m2.5s`: as Go prints a duration."""
    if nanoseconds >= 60e9:
        minutes, rest = divmod(nanoseconds, 60e9)
        hours, minutes = divmod(int(minutes), 60)
        return f"{f'{hours}h' if hours else ''}{minutes}m{rest / 1e9:.9g}s"
    for unit, name in ((1e9, "s"), (1e6, "ms"), (1e3, "µs")):
        if nanoseconds >= unit:
            return f"{nanoseconds / unit:.9g}{name}"
    return f"{nanoseconds:.0f}ns"


def _period(seconds: float) -> str:
    for length, name in _PERIODS:
        count = int(seconds // length)
        if count:
            return f"{count} {name}{'s' if count > 1 else ''}"
    return "a moment"


def _seconds_from_now(moment: str) -> float | None:
    try:
        when = datetime.fromisoformat(moment)
    except ValueError:
        return None
    return (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp() - datetime.now(UTC).timestamp()
