"""Memory of this process: how much it took at most, and that what is freed goes back to the operating system."""

from __future__ import annotations

import ctypes
import resource
import sys
from pathlib import Path

STATUS = Path("/proc/self/status")


def give_back() -> None:
    """Has glibc return what is free between blocks that are in use, which it keeps otherwise and slowly adds to."""
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:
        trim(0)


def peak_memory() -> int:
    """Returns the process's peak resident memory so far, in bytes.

    Linux counts it in /proc; what getrusage says there is at least the size of the process that started this one.
    """
    if STATUS.is_file():
        for line in STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
