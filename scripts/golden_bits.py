"""Write tests/goldens/bits.json: what the native executor computes for the golden passages, bit for bit.

Run it only when bits are meant to change, and say why in the commit: `golden_bits.py SMOLLM2 GEMMA3` (files).
"""

import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from corral._native import isas  # noqa: E402
from executors.test_bits import FILE, compute_bits  # noqa: E402


def main() -> int:
    paths = dict(zip(("smollm2", "gemma3"), sys.argv[1:], strict=True))
    bits = {
        model: {isa: compute_bits(Path(path), model, isa) for isa in isas()} for model, path in paths.items()
    }
    FILE.write_text(json.dumps(bits, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
