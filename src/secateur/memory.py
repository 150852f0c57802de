"""Memory that is freed goes back to the operating system."""

from __future__ import annotations

import ctypes
import sys


def give_back() -> None:
    """Has glibc return what is free between blocks that are in use, which it keeps otherwise and slowly adds to."""
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:
        trim(0)
