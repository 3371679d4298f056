"""Shows a benchmark: what is being measured, each figure as it comes, and the tables at the end."""

import sys
import time
from collections.abc import Iterable
from types import TracebackType
from typing import Any

from corral.bench.results import Measurement
from corral.bench.tables import COLUMNS, Table
from corral.bench.target import Meter

_WIDTH = 220  # of tables that go into a file
_HEADLINE = 5  # figures of a measurement that are worth a line while the rest goes on


class Display:
    """A benchmark's progress on stderr: one line that changes on a terminal, plain lines elsewhere."""

    def __init__(self) -> None:
        from rich.console import Console

        self.console = Console(stderr=True, highlight=False)
        self._status: Any = None
        self._what, self._began = "", 0.0

    def __enter__(self) -> "Display":
        if self.console.is_terminal:
            # More updates would take CPU from the server.
            self._status = self.console.status("", refresh_per_second=2)
            self._status.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._status:
            self._status.stop()

    def observe(self, what: str, meter: Meter | None) -> None:
        """Show the step of the benchmark that runs now, and how many tokens have come."""
        if what != self._what:
            self._what, self._began = what, time.monotonic()
            if not self._status:
                print(what, file=sys.stderr, flush=True)
        if self._status:
            seconds = f"{time.monotonic() - self._began:.0f} s"
            came = f", {meter.tokens} tokens, {meter.done} done" if meter else ""
            self._status.update(f"{what}{came}, {seconds}")

    def measured(self, measurement: Measurement) -> None:
        """Show the main figures of a measurement that has just been made."""
        columns = COLUMNS.get(measurement.load, ())
        shown = [
            f"{column.title} {column.show(measurement.figures)}{f' {column.unit}' if column.unit else ''}"
            for column in columns
            if column.figure in measurement.figures
        ]
        where = f"{measurement.model} {measurement.load} {measurement.users} users, {measurement.server}"
        self.console.print(f"{where}: {', '.join(shown[:_HEADLINE])}", markup=False, soft_wrap=True)
        for problem in measurement.problems:
            self.console.print(f"  {problem}", markup=False, soft_wrap=True)


def print_tables(tables: Iterable[Table]) -> None:
    """Print tables of results on stdout."""
    from rich import box
    from rich.console import Console
    from rich.table import Table as RichTable

    console = Console(width=None if sys.stdout.isatty() else _WIDTH, highlight=False)
    for table in tables:
        shown = RichTable(
            box=box.SIMPLE, title=table.title, title_justify="left", title_style="bold", pad_edge=False
        )
        for place, heading in enumerate(table.headings):
            first = place == 0
            shown.add_column(heading, justify="left" if first else "right", min_width=_width(table, place))
        for row in table.rows:
            shown.add_row(*row)
        console.print(shown, markup=False)


def _width(table: Table, place: int) -> int:
    """Characters that a column needs: its widest cell, or the longest word of its heading."""
    return max(len(word) for word in [*table.headings[place].split(), *(row[place] for row in table.rows)])
