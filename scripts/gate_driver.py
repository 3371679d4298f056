"""One build's engine, stepped on demand: `gate_driver.py MODEL`, run by that build's own Python for gate.py.

Each line of standard input is a case and a turn. The case is `decode20` (a step with so many sequences
decoding) or `prompt256` (a prompt of so many tokens, new in every turn); the driver runs it once and prints
its seconds. What differs between the builds that can be compared is in `open_engine` and nowhere else.
"""

import argparse
import gc
import random
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import Any

KV_BYTES = 2**30  # memory never written to is not taken from the machine
MOST_STEPS = 4096  # of a sequence that decodes


def open_engine(path: Path, threads: int, isa: str) -> Any:
    """An engine with this model, which has `add`, `step`, `cancel` and `options`."""
    loading: Any = import_module("corral.engine.load")
    make_spec: Any = import_module("corral.engine.protocol").EngineSpec
    fields = {
        "path": str(path),
        "threads": threads,
        "batch_tokens": 256,
        "max_sequences": 64,
        "isa": isa,
        "drafts": False,  # a step is one token a sequence
    }
    if hasattr(loading, "open_model"):  # loading in two halves
        engine, _ = loading.open_model(make_spec(**fields)).load(KV_BYTES)
    else:
        engine, _ = loading.load(make_spec(**fields, kv_bytes=KV_BYTES))
    return engine


def sampling(tokens: int) -> Any:
    """Greedy sampling of `tokens` tokens; the engine itself knows no token that ends a reply."""
    from corral.types import SamplingParams

    return SamplingParams(temperature=0, max_tokens=tokens)


class Driver:
    """Sequences 0, 1, 2 ... decode after `context` tokens of prompt; the same cases are the same work."""

    def __init__(self, engine: Any, context: int):
        self._engine, self._context = engine, context
        self._decoding = 0

    def decode(self, count: int, _: int) -> float:
        """Seconds of a step in which `count` sequences decode."""
        new = set(range(self._decoding, count))
        self._cancel_from(count)
        for id in new:
            self._engine.add(id, self._tokens(id, self._context), sampling(MOST_STEPS))
        while new:  # read their prompts
            new -= {output.id for output in self._engine.step()}
        self._decoding = count
        begun = time.perf_counter()
        step = self._engine.step()
        seconds = time.perf_counter() - begun
        outputs = list(step)
        assert len(outputs) == count and all(len(each.tokens) == 1 for each in outputs), outputs
        return seconds

    def prompt(self, length: int, turn: int) -> float:
        """Seconds until a prompt of `length` tokens has its first token."""
        self._cancel_from(0)
        id = -1 - turn
        self._engine.add(id, self._tokens(id, length), sampling(2))
        begun = time.perf_counter()
        while not list(self._engine.step()):
            pass
        seconds = time.perf_counter() - begun
        self._engine.cancel(id)
        return seconds

    def _cancel_from(self, first: int) -> None:
        for id in range(first, self._decoding):
            self._engine.cancel(id)
        self._decoding = min(self._decoding, first)

    def _tokens(self, seed: int, count: int) -> list[int]:
        choose = random.Random(seed)
        return [choose.randrange(10, self._engine.options.vocab_size) for _ in range(count)]


def main() -> None:
    """Say which corral this is, then run the cases that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--isa", default="auto")
    parser.add_argument("--context", type=int, default=512, help="tokens before each decoding one")
    given = parser.parse_args()
    import corral

    driver = Driver(open_engine(given.model, given.threads, given.isa), given.context)
    gc.freeze()  # as the engine's process does
    print(corral.__file__, flush=True)
    cases = {"decode": driver.decode, "prompt": driver.prompt}
    for line in sys.stdin:
        case, turn = line.split()
        kind = case.rstrip("0123456789")
        print(cases[kind](int(case.removeprefix(kind)), int(turn)), flush=True)


if __name__ == "__main__":
    main()
