"""Two processes against one: time and perplexity of the same run, on the same cores.

The protocol of bench/protocol.py, once by one process with all cores and once by two with half of them each. Figures
go to bench/results/processes.json.

    python bench/processes.py --data DATA
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from protocol import HERE, MODEL, perplexity

RESULTS = HERE / "results" / "processes.json"


def measure(processes: int, data: Path, out: Path) -> dict[str, Any]:
    """Prunes by so many processes, and evaluates."""
    calibration = ["--calibration", str(data / "text/c4_sample.jsonl"), "--samples", "32", "--length", "1024"]
    options = ["prune", MODEL, "-o", str(out), "--sparsity", "0.5", *calibration, "--no-evaluate", "--quiet", "--json"]
    many = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    threads = str(max(1, (os.cpu_count() or 1) // processes))
    done = subprocess.run(
        [sys.executable, *(many if processes > 1 else []), "-m", "secateur", *options],
        stdout=subprocess.PIPE,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": threads},
    )
    found = json.loads(done.stdout)
    return {
        **perplexity(str(out), data),
        "processes": processes,
        "threads_each": int(threads),
        "seconds": round(found["seconds"]["prune"], 1),
        "phases": {name: round(value, 1) for name, value in found["stages"][0]["seconds"].items()},
    }


def main() -> None:
    """Measures and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=HERE.parents[1] / "shared" / "data")
    arguments = parser.parse_args()
    results: dict[str, Any] = {"command": "python bench/processes.py --data DATA", "rows": []}
    for processes in (1, 2):
        with tempfile.TemporaryDirectory() as scratch:
            results["rows"].append(measure(processes, arguments.data, Path(scratch) / "out"))
        print(results["rows"][-1], flush=True)
    one, two = results["rows"]
    results["time_ratio"] = round(two["seconds"] / one["seconds"], 3)
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
