"""What this machine, or the container that we are in, lets us use."""

import os
from collections.abc import Iterator
from pathlib import Path

PROC, CGROUP = Path("/proc"), Path("/sys/fs/cgroup")


def available_memory(proc: Path = PROC, cgroup: Path = CGROUP) -> int:
    """Bytes that could be taken without pushing anything out, in the system and in our cgroup."""
    return max(0, min([_system_memory(proc), *_cgroup_memory(proc, cgroup)]))


def usable_cores(proc: Path = PROC, cgroup: Path = CGROUP) -> int:
    """Cores that this process may run on, at most what a cgroup's quota pays for."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for folder in _cgroup_folders(proc, cgroup):
        quota, _, period = _read(folder / "cpu.max").partition(" ")
        if quota.isdigit() and period.strip().isdigit():
            cores = min(cores, max(1, -(-int(quota) // int(period))))
    return cores


def _system_memory(proc: Path) -> int:
    for line in _read(proc / "meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2  # no Linux: half of what there is


def _cgroup_memory(proc: Path, cgroup: Path) -> Iterator[int]:
    """What each limited cgroup above us has left; file pages that it can drop count as free."""
    for folder in _cgroup_folders(proc, cgroup):
        limit, used = _read(folder / "memory.max").strip(), _read(folder / "memory.current").strip()
        if limit.isdigit() and used.isdigit():
            stat = dict(line.split() for line in _read(folder / "memory.stat").splitlines())
            yield int(limit) - int(used) + int(stat.get("inactive_file", 0))


def _cgroup_folders(proc: Path, cgroup: Path) -> Iterator[Path]:
    """Our cgroup (version 2) and those above it."""
    for line in _read(proc / "self" / "cgroup").splitlines():
        if line.startswith("0::/"):
            folder = cgroup / line[len("0::/") :]
            yield folder
            yield from (parent for parent in folder.parents if parent.is_relative_to(cgroup))


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
