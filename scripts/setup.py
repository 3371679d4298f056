"""Make the virtual environment and install corral into it: `setup.py VENV [--dev]`.

Needs Python 3.11+ with venv and a C++ compiler; the rest comes from the package index that pip is set up for.
"""

import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def main() -> int:
    venv = ROOT / sys.argv[1]
    problem = _missing()
    if problem:
        print(f"setup: {problem}", file=sys.stderr)
        return 1
    if not (venv / "bin" / "pip").exists():
        print(f"Making the environment in {sys.argv[1]} ...", flush=True)
        if subprocess.run([sys.executable, "-m", "venv", str(venv)]).returncode:
            return 1
    if "--dev" in sys.argv:
        groups = tomllib.loads((ROOT / "pyproject.toml").read_text())["dependency-groups"]
        print("Installing the tools for checks and tests ...", flush=True)
        return _pip(venv, *groups["dev"])
    print("Building corral and installing what it needs (about two minutes) ...", flush=True)
    return _pip(venv, "-e", str(ROOT))


def _missing() -> str:
    """What the machine lacks, with the remedy, or nothing."""
    if sys.version_info < (3, 11):  # noqa: UP036
        return f"Python 3.11 or newer is needed, this is {sys.version.split()[0]}: try `make PYTHON=...`"
    try:
        import ensurepip  # noqa: F401
    except ImportError:
        return "Python's venv module is missing; on Debian or Ubuntu: apt install python3-venv"
    if not any(shutil.which(name) for name in ("c++", "g++", "clang++")):
        return "no C++ compiler was found; on Debian or Ubuntu: apt install g++"
    return ""


def _pip(venv: Path, *arguments: str) -> int:
    command = [str(venv / "bin" / "python"), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    return subprocess.run([*command, *arguments]).returncode


if __name__ == "__main__":
    sys.exit(main())
