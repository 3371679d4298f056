"""The results of a benchmark, kept as they come: nothing is lost when something later fails."""

import time
from collections.abc import Callable
from pathlib import Path

from corral import __version__
from corral.bench.machine import describe_machine
from corral.bench.results import Measurement, Results, Server, save

Listener = Callable[[Measurement], None]


class Ledger:
    """The results so far; every change is written to `path`, if there is one, and told to `listener`."""

    def __init__(self, command: str, seed: str, size: tuple[int, int], path: Path | None, listener: Listener):
        self.results = Results(
            made=time.strftime("%Y-%m-%d %H:%M:%S"),
            corral=__version__,
            command=command,
            seed=seed,
            size=size,
            machine=describe_machine(),
        )
        self._path, self._listener = path, listener

    def server(self, server: Server) -> None:
        """Note a server that is measured."""
        self._keep(self.results.with_server(server))

    def add(self, measurement: Measurement) -> None:
        """Keep one measurement."""
        self._keep(self.results.with_measurement(measurement))
        self._listener(measurement)

    def problem(self, text: str) -> None:
        """Note what could not be measured, and why."""
        self._keep(self.results.with_problem(text))

    def _keep(self, results: Results) -> None:
        self.results = results
        if self._path:
            save(results, self._path)
