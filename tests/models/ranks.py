"""Runs the programs of several ranks in lockstep, each with a reference executor on a thread of its own."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from corral.executors.batch import Batch
from corral.executors.reference import ReferenceExecutor
from corral.models.program import Program


class Ranks:
    """`logits(batch)` has what each rank's head gives."""

    def __init__(self, programs: Sequence[Program], num_blocks: int, max_tokens: int):
        self._barrier = threading.Barrier(len(programs), timeout=60)
        self._rows: list[np.ndarray] = [np.zeros(0)] * len(programs)
        self._executors = [
            ReferenceExecutor(
                program, num_blocks=num_blocks, max_tokens=max_tokens, all_reduce=self._adder(rank)
            )
            for rank, program in enumerate(programs)
        ]

    def logits(self, batch: Batch) -> list[np.ndarray]:
        with ThreadPoolExecutor(len(self._executors)) as threads:
            list(threads.map(lambda executor: executor.submit(batch), self._executors))
        return [executor.logits for executor in self._executors]

    def _adder(self, rank: int) -> Callable[[np.ndarray], np.ndarray]:
        def add(rows: np.ndarray) -> np.ndarray:
            self._rows[rank] = rows.copy()
            self._barrier.wait()
            total = np.sum(self._rows, axis=0, dtype=np.float32)
            self._barrier.wait()
            return total

        return add
