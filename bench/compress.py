"""What pruning and quantization cost together: SmolLM2-135M in bf16, perplexity, mask and size on disk.

The protocol of bench/protocol.py: 32 calibration windows of 1,024 tokens of C4, perplexity on the first 20 windows of
1,024 tokens of WikiText-2 raw test. Each row is a process of its own. Rows that were measured before stay unless
--again is given. Figures go to bench/results/compress.json, and with --table the table of docs/deploying.md is printed
from them.

    python bench/compress.py --data DATA
    python bench/compress.py --table
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import yaml

from protocol import HERE, MODEL, check_texts, secateur
from rows import Rows, parser_of, printed

RESULTS = HERE / "results" / "compress.json"
HALF, TWO_FOUR = {"prune": {"sparsity": 0.5}}, {"prune": {"pattern": "2:4"}}
INT8, INT4 = {"quantize": {"bits": 8}}, {"quantize": {"bits": 4}}
LOW_RANK = {"factorize": {"params": 0.8}}
ROWS: dict[str, list[dict[str, Any]]] = {
    "int8": [INT8],
    "int4": [INT4],
    "int4, to nearest": [{"quantize": {"bits": 4, "method": "nearest"}}],
    "2:4": [TWO_FOUR],
    "2:4, then int8": [TWO_FOUR, INT8],
    "50 %": [HALF],
    "50 %, then int4": [HALF, INT4],
    "low rank, 80 % of the parameters": [LOW_RANK],
    "low rank, 80 %, then int8": [LOW_RANK, INT8],
    "low rank by error, 80 %": [{"factorize": {"params": 0.8, "allocation": "error"}}],
    "sparse and low rank, 80 %": [{"factorize": {"params": 0.8, "sparse": 0.7}}],
    "50 % and int4 in one sweep": [{"quantize": {"bits": 4, "sparsity": 0.5}}],
}


def measure(stages: list[dict[str, Any]], data: Path, scratch: Path) -> dict[str, Any]:
    """Carries a recipe out; returns what came of it, beside the dense model."""
    recipe = {
        "model": MODEL,
        "output": str(scratch / "out"),
        "overwrite": True,
        "dtype": "bfloat16",
        "calibration": {"data": str(data / "text/c4_sample.jsonl"), "samples": 32, "length": 1024},
        "stages": stages,
        "evaluate": {"text": str(data / "text/wiki.test.raw"), "windows": 20, "length": 1024, "speed": False},
    }
    path = scratch / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    found = secateur("run", str(path))
    dense, (other,) = found["comparison"]["dense"], found["comparison"]["others"]
    return {
        "perplexity": round(other["perplexity"], 2),
        "kl": round(other["kl"], 4),
        "zeros": round(other["zeros"] / other["weights"], 5) if other["weights"] else None,  # factors are no layers
        "mask": other["mask"],
        "pattern": other["pattern"],
        "bytes_on_disk": other["bytes_on_disk"],
        "share": round(other["bytes_on_disk"] / (2 * dense["parameters"]), 4),
        "seconds": round(found["seconds"]["total"]),
        "dense": round(dense["perplexity"], 2),
        "stages": stages,
    }


def table(results: dict[str, Any]) -> str:
    """Returns the table in markdown."""
    lines = ["| what | perplexity | KL | zeros | mask | file, of dense bf16 |", "|---|---:|---:|---:|---|---:|"]
    for name, row in results["rows"].items():
        zeros = "" if row["zeros"] is None else f"{row['zeros']:.2%}"
        cells = [name, f"{row['perplexity']:.2f}", f"{row['kl']:.3f}", zeros, row["mask"] or "", f"{row['share']:.1%}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Measures and writes the results, row by row."""
    arguments = parser_of(__doc__, ROWS).parse_args()
    if printed(arguments, RESULTS, table):
        return
    check_texts(arguments.data)
    results = Rows(RESULTS, "python bench/compress.py --data DATA", ROWS, arguments.again)
    for name in results.wanted(arguments.only):
        with tempfile.TemporaryDirectory() as scratch:
            results.take(name, measure(ROWS[name], arguments.data, Path(scratch)))


if __name__ == "__main__":
    main()
