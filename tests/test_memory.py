"""Freed memory goes back to the operating system."""

from __future__ import annotations

import subprocess
import sys

import pytest

CODE = """
import torch
from secateur.memory import give_back

def held():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("RssAnon")) / 1024

torch.ones(20 << 20, dtype=torch.uint8)  # freed at once: smaller ones come from the heap from now on
some = [torch.ones(1 << 20, dtype=torch.uint8) for _ in range(300)]
last = some[-1]
del some
before = held()
give_back()
print(before - held())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="it is for glibc")
def test_what_is_free_below_what_is_in_use_is_given_back() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    assert float(done.stdout) > 200
