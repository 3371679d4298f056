"""Ends a process with the one that started it, even if that one is killed."""

import ctypes
import signal
import sys

_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None  # here: no library is loaded after a fork


def die_with_parent() -> None:
    """Have Linux kill this process as soon as the thread that started it has ended."""
    if _LIBC:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
