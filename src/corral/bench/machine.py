"""This machine in words, and the memory and CPU time that a tree of processes takes of it."""

import contextlib
import os
import platform
import re
from dataclasses import dataclass
from pathlib import Path

from corral.pool.machine import usable_cores

PROC = Path("/proc")
_FLAGS = ("avx2", "avx512f", "avx512_vnni", "amx_int8", "asimddp", "i8mm")


def describe_machine(proc: Path = PROC) -> dict[str, str]:
    """What a reader of results wants to know of the machine that they were measured on."""
    name, flags = processor(proc)
    total = re.search(r"^MemTotal:\s*(\d+)", _read(proc / "meminfo"), re.MULTILINE)
    return {
        "processor": name,
        "cores": str(usable_cores()),
        "instructions": " ".join(flag for flag in _FLAGS if flag in flags) or platform.machine(),
        "memory": f"{int(total[1]) / 2**20:.0f} GiB" if total else "unknown",
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }


def processor(proc: Path = PROC) -> tuple[str, set[str]]:
    """The processor's name and its feature flags, as far as the system tells."""
    cpuinfo = _read(proc / "cpuinfo")
    name = re.search(r"^model name\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
    flags = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
    return name[1] if name else platform.machine(), set(flags[1].split() if flags else ())


@dataclass(frozen=True, slots=True)
class ProcessTree:
    """A process with all of its descendants."""

    pid: int
    proc: Path = PROC

    def pids(self) -> list[int]:
        """The processes that are alive."""
        found, open_ = [], [self.pid]
        while open_:
            pid = open_.pop()
            if (self.proc / str(pid)).exists():
                found.append(pid)
                for task in _folders(self.proc / str(pid) / "task"):
                    open_ += [int(child) for child in _read(task / "children").split()]
        return found

    def memory(self) -> int:
        """Bytes of memory, what processes share counted once (the proportional set size)."""
        sizes = (
            re.search(r"^Pss:\s*(\d+)", _read(self.proc / str(pid) / "smaps_rollup"), re.M)
            for pid in self.pids()
        )
        return sum(int(size[1]) * 1024 for size in sizes if size)

    def cpu(self) -> float:
        """Seconds of CPU time that the living processes have used."""
        ticks = 0
        for pid in self.pids():
            fields = _read(self.proc / str(pid) / "stat").rpartition(")")[2].split()
            ticks += sum(int(field) for field in fields[11:13])
        return ticks / os.sysconf("SC_CLK_TCK")


def _folders(path: Path) -> list[Path]:
    with contextlib.suppress(OSError):
        return list(path.iterdir())
    return []


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
