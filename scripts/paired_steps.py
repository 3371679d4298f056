"""Compare two builds of the engine: `paired_steps.py A/.venv/bin/python B/.venv/bin/python MODEL.gguf`.

Both run the same steps in turns, so that whatever else the machine does slows both; the median of the
paired ratios tells differences of one percent where separate runs differ by ten.
"""

import argparse
import dataclasses
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

TESTS = Path(__file__).resolve().parent.parent / "tests"


def serve_steps(given: argparse.Namespace) -> None:
    """In a child: run the step that each line of standard input names, and print its seconds."""
    sys.path.insert(0, str(TESTS))
    from batches import Part, blocks_for, make_batch
    from corral.executors.batch import Batch
    from corral.executors.native import NativeExecutor
    from corral.models.table import build_program
    from corral.weights.gguf import open_gguf
    from corral.weights.gguf_source import GGUFSource

    gguf = open_gguf(given.model)
    program = build_program(GGUFSource(gguf))
    sizes = [int(re.sub(r"\D", "", case)) for case in given.cases.split(",")]
    table, groups = len(blocks_for(given.context + 1)), len(program.kv_groups)
    executor = NativeExecutor(
        program,
        num_blocks=max(sizes) * table * groups,
        max_tokens=max(*sizes, given.context),
        max_sequences=max(sizes),
        threads=given.threads,
        isa=given.isa,
        on_packed=gguf.release,
    )
    random = np.random.default_rng(0)

    def part(count: int, first: int, start: int = 0) -> Part:
        tokens = random.integers(5, program.vocab_size, count).tolist()
        return Part(tokens, blocks_for(start + count, first), start, None if start else [])

    def batch_of(parts: list[Part]) -> Batch:
        batch = make_batch(parts)
        rows = batch.blocks.reshape(batch.blocks.shape[-2:])
        tables = [np.where(rows >= 0, rows * groups + group, -1) for group in range(groups)]
        return dataclasses.replace(batch, blocks=np.stack(tables).astype(np.int32))

    def case_of(name: str) -> Batch:
        size = int(re.sub(r"\D", "", name))
        if name.startswith("prefill"):
            return batch_of([part(size, 0)])
        firsts = range(0, size * table, table)
        for first in firsts:  # memory never written to is all one page, and too fast
            executor.step(batch_of([part(given.context, first)]))
        return batch_of([part(1, first, given.context) for first in firsts])

    batches = {case: case_of(case) for case in given.cases.split(",")}
    for line in sys.stdin:
        begun = time.perf_counter()
        executor.step(batches[line.strip()])
        print(time.perf_counter() - begun, flush=True)


class Build:
    """One build's process."""

    def __init__(self, python: str, arguments: list[str]):
        command = [python, __file__, *arguments, "--child"]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def step(self, case: str) -> float:
        """Seconds of one step."""
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(case + "\n")
        self._process.stdin.flush()
        return float(self._process.stdout.readline())


def main() -> int:
    """Print a line a case."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "pythons", nargs=2, metavar="PYTHON", help="interpreters of the two builds' environments"
    )
    parser.add_argument("model", help="a GGUF file")
    parser.add_argument("--cases", default="decode1,decode5,decode20,prefill256", help="by rows of a step")
    parser.add_argument("--context", type=int, default=250, help="tokens before each decoding one")
    parser.add_argument("--pairs", type=int, default=50)
    parser.add_argument("--isa", default="auto")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        serve_steps(given)
        return 0
    builds = [Build(python, [*sys.argv[1:]]) for python in given.pythons]
    for case in given.cases.split(","):
        times: list[list[float]] = [[], []]
        for turn in range(given.pairs + 1):  # the first pair warms both
            for which in (0, 1) if turn % 2 else (1, 0):
                times[which].append(builds[which].step(case))
        first, second = (each[1:] for each in times)
        ratio = statistics.median(b / a for a, b in zip(first, second, strict=True))
        medians = [f"{statistics.median(each) * 1e3:.2f} ms" for each in (first, second)]
        print(f"{case}: {medians[0]}, {medians[1]}; second / first {ratio:.3f}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
