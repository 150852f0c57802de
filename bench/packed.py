"""How much smaller packed checkpoints are, and how fast they are packed and unpacked: SmolLM2-135M in bf16.

The masks come from `--score l1`, which takes seconds: what is packed is as large whatever chose it. Figures go to
bench/results/packed.json.

    python bench/packed.py
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from pathlib import Path
from typing import Any

from protocol import HERE, MODEL, secateur

RESULTS = HERE / "results" / "packed.json"
AMOUNTS = {"50 %": ["--sparsity", "0.5"], "70 %": ["--sparsity", "0.7"], "2:4": ["--pattern", "2:4"]}


def digest(folder: Path) -> str:
    """Returns the hash of a checkpoint's weight files."""
    found = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        found.update(path.read_bytes())
    return found.hexdigest()


def measure(options: list[str], scratch: Path) -> dict[str, Any]:
    """Prunes, packs and unpacks."""
    plain, packed, again = (scratch / name for name in ("plain", "packed", "again"))
    quick = ["--score", "l1", "--dtype", "bfloat16", "--no-evaluate"]
    secateur("prune", MODEL, "-o", str(plain), *options, *quick)
    packing = secateur("pack", str(plain), "-o", str(packed))
    unpacking = secateur("unpack", str(packed), "-o", str(again))
    megabytes = packing["plain"] / 1e6
    return {
        "options": " ".join([*options, *quick]),
        "plain_mb": round(megabytes, 2),
        "packed_mb": round(packing["packed"] / 1e6, 2),
        "whole_ratio": round(packing["packed"] / packing["plain"], 4),
        "layers_ratio": round(packing["layers_packed"] / packing["layers_plain"], 4),
        "pack_mb_per_s": round(megabytes / packing["seconds"], 1),
        "unpack_mb_per_s": round(megabytes / unpacking["seconds"], 1),
        "identical": digest(plain) == digest(again),
    }


def main() -> None:
    """Measures and writes the results."""
    results: dict[str, Any] = {"command": "python bench/packed.py", "rows": {}}
    for amount, options in AMOUNTS.items():
        with tempfile.TemporaryDirectory() as scratch:
            results["rows"][amount] = measure(options, Path(scratch))
        print(amount, results["rows"][amount], flush=True)
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
