"""Compare two commits, and fail if the new one has lost more than 3 % anywhere: `gate.py OLD [NEW]`.

Each commit is built once, in a folder of its own. Both builds then take turns at everything that is measured,
so that whatever else the machine does meets both. A row is lost when the whole interval of its ratio is
beyond the limit; one whose interval reaches across the limit is measured again. OLD and NEW may also be
folders with a `.venv`.

Exit codes: 0 nothing lost, 1 lost, 2 not measured.
"""

import argparse
import json
import sys
from collections.abc import Callable, Collection, Iterator
from dataclasses import asdict, replace
from pathlib import Path

from corral.bench.machine import describe_machine
from corral.config import ISAS
from corral.errors import CorralError
from gate_builds import ROOT, build, model_file
from gate_figures import LIMIT, Row, Verdict, confidence, table
from gate_gauges import GAUGES, SUBJECTS, Pair, same_bits

AGAIN = 2  # times as many further rounds for a row whose interval reaches across the limit


def main() -> int:
    """Print the table."""
    given = _arguments()
    try:
        pairs = list(_pairs(given))
        rows = [row for pair in pairs for name in _gauges(given, pair) for row in _measure(given, pair, name)]
        notes = {f"{p.subject.name}, {p.isa}": same_bits(p) for p in pairs if "accuracy" in given.rows}
    except CorralError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    machine = describe_machine()
    print(_report(rows, notes, machine, given))
    if given.json:
        found = {"old": given.old, "new": given.new, "machine": machine, "bits": notes}
        found["rows"] = [asdict(row) | {"verdict": row.verdict} for row in rows]
        Path(given.json).write_text(json.dumps(found, indent=1) + "\n")
    return int(any(row.verdict == Verdict.LOST for row in rows))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("old", metavar="OLD", help="a commit")
    parser.add_argument("new", metavar="NEW", nargs="?", default="HEAD", help="a commit (default: HEAD)")
    parser.add_argument("--rows", type=_list(GAUGES), default=list(GAUGES), metavar=",".join(GAUGES))
    parser.add_argument("--models", type=_list(SUBJECTS), default=list(SUBJECTS), metavar=",".join(SUBJECTS))
    parser.add_argument("--isa", type=_list(ISAS), default=["auto"], metavar=",".join(ISAS))
    parser.add_argument("--quick", action="store_true", help="half the rounds, none again, for development")
    parser.add_argument("--json", metavar="FILE", help="write every sample to FILE")
    parser.add_argument("--cache", type=Path, default=ROOT / "build" / "gate", help="builds and models")
    return parser.parse_args()


def _list(choices: Collection[str]) -> Callable[[str], list[str]]:
    def parse(text: str) -> list[str]:
        for name in text.split(","):
            if name not in choices:
                raise argparse.ArgumentTypeError(f"'{name}' is not one of {', '.join(choices)}")
        return text.split(",")

    return parse


def _pairs(given: argparse.Namespace) -> Iterator[Pair]:
    """The two builds with each model, under each set of kernels."""
    cache = given.cache.resolve()
    old, new = (build(name, cache) for name in (given.old, given.new))
    for name in given.models:
        subject = SUBJECTS[name]
        file = model_file(subject.model, cache, old)
        for isa in given.isa:
            yield Pair(old, new, subject, file, cache / "models", isa)


def _gauges(given: argparse.Namespace, pair: Pair) -> list[str]:
    return [name for name in given.rows if name in pair.subject.gauges]


def _measure(given: argparse.Namespace, pair: Pair, name: str) -> list[Row]:
    """The rows of one gauge, measured again where they are unsure."""
    gauge = GAUGES[name]
    rows = {
        case: Row(pair.subject.name, pair.isa, what, unit, scale, gauge.exact)
        for case, (what, unit, scale) in gauge.rows.items()
    }
    rounds = -(-gauge.rounds // 2) if given.quick else gauge.rounds
    for number in range(rounds if given.quick or gauge.exact else (1 + AGAIN) * rounds):
        wanted = [case for case, row in rows.items() if number < rounds or row.verdict == Verdict.UNSURE]
        if not wanted:
            break
        print(f"{pair.subject.name}, {pair.isa}, {name}: round {number + 1}", file=sys.stderr, flush=True)
        for case, sample in gauge.measure(pair, wanted, number).items():
            rows[case] = replace(rows[case], samples=(*rows[case].samples, sample))
    return list(rows.values())


def _report(rows: list[Row], bits: dict[str, str], machine: dict[str, str], given: argparse.Namespace) -> str:
    """The table, under what it was measured on, over what it means."""
    held = min((confidence(len(row.samples)) for row in rows if not row.exact), default=1.0)
    return "\n".join(
        [
            ", ".join(f"{name} {value}" for name, value in machine.items()),
            "",
            table(rows, given.old, given.new),
            "",
            f"Less is better in every row; LOST is what has become more than {LIMIT:g} times as much. "
            f"The true ratio is in at least {held:.0%} of such intervals.",
            *(f"Bits of {name}: {said}." for name, said in bits.items()),
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
