"""Shows the steps of a pull: bars on a terminal, a plain line a status elsewhere, JSON lines if asked for."""

import json
import sys
from collections.abc import Generator
from typing import Any, Protocol, TextIO

from corral.cli.client import Json
from corral.cli.exits import ApiError


class _Display(Protocol):
    def show(self, step: Json) -> None: ...

    def close(self) -> None: ...


def follow(steps: Generator[Json, None, None], *, as_json: bool = False, quiet: bool = False) -> None:
    """Show every step of a pull; ApiError if it ends without success. An interrupt ends the pull."""
    display = _display(as_json)
    try:
        last = ""
        for step in steps:
            last = step.get("status", "")
            if not quiet:
                display.show(step)
        if last != "success":
            raise ApiError(502, "the pull ended before it was finished; run the command again")
    finally:
        steps.close()
        display.close()


def _display(as_json: bool) -> _Display:
    if as_json:
        return _Lines(sys.stdout, json.dumps)
    if sys.stderr.isatty():
        return _Bars()
    return _Lines(sys.stderr, lambda step: str(step.get("status", "")))


class _Lines:
    """A line for each step that differs from the one before."""

    def __init__(self, file: TextIO, text: Any):
        self.file, self.text, self.last = file, text, ""

    def show(self, step: Json) -> None:
        line = self.text(step)
        if line != self.last:
            print(line, file=self.file, flush=True)
        self.last = line

    def close(self) -> None:
        pass


class _Bars:
    """A bar for each thing fetched, with rate and time left; a spinner for what has no length."""

    def __init__(self) -> None:
        from rich import progress as rich
        from rich.console import Console

        words = (rich.SpinnerColumn(finished_text=" "), rich.TextColumn("{task.description}"))
        numbers = (
            rich.BarColumn(bar_width=30),
            rich.TextColumn("{task.percentage:>3.0f}%"),
            rich.DownloadColumn(),
            rich.TransferSpeedColumn(),
            rich.TimeRemainingColumn(),
        )
        self.console = Console(stderr=True)
        self.bars = rich.Progress(*words, *numbers, console=self.console)
        self.words = rich.Progress(*words, console=self.console, transient=True)
        self.tasks, self.shown = dict[str, Any](), ""
        self.live: rich.Progress | None = None

    def show(self, step: Json) -> None:
        status, total = str(step.get("status", "")), step.get("total")
        if total:
            self._switch_to(self.bars)
            if status not in self.tasks:
                self.tasks[status] = self.bars.add_task(status, total=total)
            self.bars.update(self.tasks[status], total=total, completed=step.get("completed", 0))
        elif status == "success":
            self.close()
            self.console.print(status)
        elif status != self.shown:
            self._switch_to(self.words)
            for task in self.words.task_ids:
                self.words.remove_task(task)
            self.words.add_task(status, total=None)
        self.shown = status

    def _switch_to(self, wanted: Any) -> None:
        if self.live is not wanted:
            self.close()
            wanted.start()
            self.live = wanted

    def close(self) -> None:
        if self.live is not None:
            self.live.stop()
            self.live = None
