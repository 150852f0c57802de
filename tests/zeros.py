"""Counts the zeros in a checkpoint's files, without secateur, torch or transformers: `python tests/zeros.py FOLDER`.

Prints JSON: for each tensor its number of exact zeros, its size, shape and dtype. The safetensors format is read
here by hand (eight bytes of length, a JSON header, then the numbers), so that nothing of what wrote a file is
trusted when its zeros are counted.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

# The numbers as unsigned integers: a float is zero if no bit but the sign is set.
UNSIGNED = {"F64": "<u8", "F32": "<u4", "F16": "<u2", "BF16": "<u2"}


def count(folder: Path) -> dict[str, dict[str, Any]]:
    """Returns zeros, size, shape and dtype of each floating-point tensor in a folder's safetensors files."""
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        data = path.read_bytes()
        start = 8 + int.from_bytes(data[:8], "little")
        header = json.loads(data[8:start])
        header.pop("__metadata__", None)
        for name, about in header.items():
            if about["dtype"] not in UNSIGNED:
                continue
            begin, end = about["data_offsets"]
            bits = np.frombuffer(data[start + begin : start + end], UNSIGNED[about["dtype"]])
            found[name] = {
                "zeros": int(np.count_nonzero(bits << 1 == 0)),
                "size": bits.size,
                "shape": about["shape"],
                "dtype": about["dtype"],
            }
    return found


def counted(folder: Path) -> dict[str, dict[str, Any]]:
    """Returns what this file prints for a folder when it runs by itself, away from the tests' own imports."""
    done = subprocess.run(
        [sys.executable, "-I", __file__, str(folder)], capture_output=True, text=True, check=True, cwd=folder
    )
    tensors: dict[str, dict[str, Any]] = json.loads(done.stdout)
    return tensors


if __name__ == "__main__":
    print(json.dumps(count(Path(sys.argv[1])), indent=1))
