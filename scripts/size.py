"""Hold the tree to its size: no file over 500 lines, and a budget for each language.

The budgets are raised only in a commit of their own that says why.
"""

import subprocess
import sys
from pathlib import Path

FILE_LIMIT = 500
BUDGETS = {"python": (("src/**/*.py",), 24_000), "native": (("native/*.cpp", "native/*.h"), 10_000)}
ROOT = Path(__file__).resolve().parent.parent


def main() -> int:
    failed = False
    for language, (patterns, budget) in BUDGETS.items():
        files = subprocess.run(
            ["git", "ls-files", *patterns], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout.split()
        lines = {name: len((ROOT / name).read_text().splitlines()) for name in files}
        total = sum(lines.values())
        print(f"{language}: {total} of {budget} lines in {len(files)} files")
        failed |= total > budget
        for name, count in lines.items():
            if count > FILE_LIMIT:
                print(f"  {name} has {count} lines; the limit is {FILE_LIMIT}: split it")
                failed = True
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
