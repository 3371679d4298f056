"""Line plots as SVG text, for a page that needs nothing from elsewhere."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 440, 270
LEFT, RIGHT, TOP, BOTTOM = 52, 14, 34, 40
MARKS = 4  # shapes, so that lines differ for those who see no colours, too


@dataclass(frozen=True, slots=True)
class Curve:
    """One server's points (x, y), and the number of its colour."""

    name: str
    colour: int
    points: tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True)
class Axis:
    """A scale of the plot, from values to pixels."""

    low: float
    high: float
    begin: float
    end: float
    log: bool = False

    def place(self, value: float) -> float:
        """A value's place in pixels."""
        low, high = self._scaled(self.low), self._scaled(self.high)
        share = (self._scaled(value) - low) / (high - low)
        return round(self.begin + share * (self.end - self.begin), 1)

    def _scaled(self, value: float) -> float:
        return math.log10(value) if self.log else value


def draw_plot(title: str, lines: Sequence[Curve], show: Callable[[float], str], *, log: bool = False) -> str:
    """An SVG element: values above numbers of users, one line a server, each point with a tip."""
    points = [point for line in lines for point in line.points if not log or point[1] > 0]
    if not points:
        return ""
    ticks = log_ticks(points) if log else linear_ticks(max(y for _, y in points))
    users = sorted({x for x, _ in points})
    across = Axis(min(0.0, *users), max(users) if max(users) > 0 else 1.0, LEFT, WIDTH - RIGHT)
    up = Axis(ticks[0], ticks[-1], HEIGHT - BOTTOM, TOP, log)
    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">',
        f'<text class="title" x="{LEFT}" y="18">{escape(title)}</text>',
        *(_level(up.place(tick), show(tick)) for tick in ticks),
        *(_tick(across.place(x), HEIGHT - BOTTOM + 16, f"{x:g}") for x in users),
        _tick((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 6, "users"),
        *(_line(line, across, up, show) for line in lines),
        "</svg>",
    ]
    return "\n".join(parts)


def linear_ticks(most: float) -> list[float]:
    """About five round values from nothing to `most` or a little more."""
    if most <= 0:
        return [0.0, 1.0]
    size = 10 ** math.floor(math.log10(most / 4))
    step = next(factor * size for factor in (1, 2, 2.5, 5, 10) if factor * size * 5 >= most)
    return [step * place for place in range(math.ceil(most / step - 1e-9) + 1)]


def log_ticks(points: Sequence[tuple[float, float]]) -> list[float]:
    """1, 2 and 5 of each power of ten around the points, or the powers alone where they are many."""
    low, high = min(y for _, y in points), max(y for _, y in points)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    factors = (1, 2, 5) if len(powers) <= 4 else (1,)
    ticks = [factor * 10.0**power for power in powers for factor in factors]
    first = max(place for place, tick in enumerate(ticks) if tick <= low)
    last = next((place for place, tick in enumerate(ticks) if tick >= high), len(ticks) - 1)
    return ticks[first : max(last, first + 1) + 1]


def _level(y: float, text: str) -> str:
    return (
        f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}"/>'
        f'<text class="tick" x="{LEFT - 6}" y="{y + 4:g}" text-anchor="end">{escape(text)}</text>'
    )


def _tick(x: float, y: float, text: str) -> str:
    return f'<text class="tick" x="{x:g}" y="{y:g}" text-anchor="middle">{text}</text>'


def _line(line: Curve, across: Axis, up: Axis, show: Callable[[float], str]) -> str:
    places = [(across.place(x), up.place(y), x, y) for x, y in sorted(line.points) if not up.log or y > 0]
    path = " ".join(f"{x},{y}" for x, y, _, _ in places)
    marks = "".join(
        f"<g>{_mark(line.colour, px, py)}<title>{escape(f'{line.name}, {x:g} users: {show(y)}')}</title></g>"
        for px, py, x, y in places
    )
    return f'<g class="c{line.colour}"><polyline points="{path}"/>{marks}</g>'


def _mark(colour: int, x: float, y: float) -> str:
    shape = colour % MARKS
    if shape == 0:
        return f'<circle cx="{x}" cy="{y}" r="4"/>'
    corners = {
        1: ((-4, -4), (4, -4), (4, 4), (-4, 4)),
        2: ((0, -5), (5, 4), (-5, 4)),
        3: ((0, -5), (5, 0), (0, 5), (-5, 0)),
    }[shape]
    return f'<polygon points="{" ".join(f"{x + dx:g},{y + dy:g}" for dx, dy in corners)}"/>'


def swatch(colour: int) -> str:
    """The mark of a line, for a legend."""
    return f'<svg class="swatch c{colour}" viewBox="-8 -8 16 16">{_mark(colour, 0, 0)}</svg>'
