"""Steps of two models in turns: `paired_models.py FIRST.gguf SECOND.gguf`.

Whatever else the machine does slows both, so that the median of the paired ratios tells small differences.
For a mixture of experts against what a token takes of it: model_variants.py's `active` and `experts`.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
from batches import Part, SampledBatch, blocks_for, make_batch, step
from corral.executors.native import NativeExecutor
from corral.models.table import build_program
from corral.weights.open import open_source

PROMPT = 64  # tokens before each decoding one


class Runner:
    """A model, ready for steps that decode a token of each of some sequences."""

    def __init__(self, path: Path, users: int, threads: int, isa: str):
        source = open_source(path)
        program = build_program(source)
        self._vocab, self._table = program.vocab_size, len(blocks_for(PROMPT + 1))
        self._groups = len(program.cache.groups)
        self._random = np.random.default_rng(0)
        self._executor = NativeExecutor(
            program,
            num_blocks=users * self._table * self._groups,
            max_tokens=max(users, PROMPT),
            max_sequences=users,
            threads=threads,
            isa=isa,
            on_packed=source.release,
        )
        for user in range(users):
            step(self._executor, self._batch([user], PROMPT, 0))

    def step(self, users: int) -> float:
        """Seconds of a step over a random token of each."""
        batch = self._batch(range(users), 1, PROMPT)
        begun = time.perf_counter()
        step(self._executor, batch)
        return time.perf_counter() - begun

    def _batch(self, users: list[int] | range, count: int, start: int) -> SampledBatch:
        parts = []
        for user in users:
            tokens = self._random.integers(5, self._vocab, count).tolist()
            blocks = blocks_for(start + count, user * self._table)
            parts.append(Part(tokens, blocks, start, None if start else []))
        return make_batch(parts, groups=self._groups)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs=2, type=Path)
    parser.add_argument("--users", default="1,5,20", help="sequences of a step")
    parser.add_argument("--pairs", type=int, default=50)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--isa", default="auto")
    given = parser.parse_args()
    sizes = [int(size) for size in given.users.split(",")]
    runners = [Runner(path, max(sizes), given.threads, given.isa) for path in given.models]
    for users in sizes:
        pairs = [[runner.step(users) for runner in runners] for _ in range(given.pairs + 1)][1:]
        first, second = (statistics.median(times) * 1e3 for times in zip(*pairs, strict=True))
        ratio = statistics.median(first / second for first, second in pairs)
        print(f"{users} users: {first:.2f} ms, {second:.2f} ms; speed of the second {ratio:.3f}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
