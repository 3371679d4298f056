"""Steps of two models in turns: `paired_models.py FIRST.gguf SECOND.gguf`, by this checkout's environment.

Whatever else the machine does slows both, so that the median of the paired ratios tells small differences.
For a mixture of experts against what a token takes of it: model_variants.py's `active` and `experts`.
"""

import argparse
import contextlib
import sys
from functools import partial
from pathlib import Path

from gate_builds import ROOT, Build
from gate_gauges import Engine, in_turns


def main() -> int:
    """Print a line a case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("models", nargs=2, type=Path)
    parser.add_argument("--cases", default="decode1,decode5,decode20", help="as gate_driver.py takes them")
    parser.add_argument("--context", type=int, default=64, help="tokens before each decoding one")
    parser.add_argument("--pairs", type=int, default=50)
    parser.add_argument("--isa", default="auto")
    given = parser.parse_args()
    with contextlib.ExitStack() as stack:
        engines = [
            stack.enter_context(contextlib.closing(Engine(Build(".", ROOT), path, given.isa, given.context)))
            for path in given.models
        ]
        for case in given.cases.split(","):
            sample = in_turns([partial(engine.run, case) for engine in engines], given.pairs)
            times = f"{sample.old * 1e3:.2f} ms, {sample.new * 1e3:.2f} ms"
            print(f"{case}: {times}; second / first {sample.ratio:.3f}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
