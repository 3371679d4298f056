"""Hold the tree to its size (pyproject, tool.size): a budget of lines for a package, a limit for a file.

A budget is raised only in a commit of its own that says what it buys.
"""

import subprocess
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ("src/**/*.py", "native/*.cpp", "native/*.h")


def main() -> int:
    """Print the table of packages, the sums, and what is over."""
    limits = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["size"]
    listed = subprocess.run(
        ["git", "ls-files", *SOURCES], cwd=ROOT, capture_output=True, text=True, check=True
    )
    files = {name: len((ROOT / name).read_text().splitlines()) for name in listed.stdout.split()}
    packages, budgets = package_lines(files, limits["budgets"]), limits["budgets"]
    for package, lines in packages.items():
        print(f"{package:<22}{lines:>7} of {budgets.get(package, 0):>6}")
    sums = [sum(each.values()) - each["native"] for each in (packages, budgets)]
    print(f"{'all Python':<22}{sums[0]:>7} of {sums[1]:>6}")
    problems = find_problems(files, packages, limits["file"], budgets)
    for problem in problems:
        print(problem)
    return int(bool(problems))


def package_lines(files: Mapping[str, int], budgets: Mapping[str, int]) -> dict[str, int]:
    """The lines of src/corral/NAME, src/corral and native, with those below them."""
    lines = dict.fromkeys(budgets, 0)
    for name, count in files.items():
        folders = PurePosixPath(name).parent.parts
        package = "/".join(folders[:3]) if folders[0] == "src" else folders[0]
        lines[package] = lines.get(package, 0) + count
    return lines


def find_problems(
    files: Mapping[str, int], packages: Mapping[str, int], limit: int, budgets: Mapping[str, int]
) -> list[str]:
    """What is over its limit, with the remedy."""
    return [
        *(
            f"{name} has no budget: give it one in pyproject, tool.size"
            for name in packages
            if name not in budgets
        ),
        *(
            f"{name} has {packages[name]} lines, its budget is {budget}: shorten it, or argue for more"
            for name, budget in budgets.items()
            if packages[name] > budget
        ),
        *(
            f"{name} has {lines} lines, the limit is {limit}: split it"
            for name, lines in files.items()
            if lines > limit
        ),
    ]


if __name__ == "__main__":
    sys.exit(main())
