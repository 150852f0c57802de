"""Prints README's table of figures from bench/results/protocol.json: python bench/readme_table.py"""

from __future__ import annotations

import json
from pathlib import Path

RESULTS = Path(__file__).resolve().parent / "results" / "protocol.json"


def table() -> str:
    """Returns the table in markdown."""
    rows = json.loads(RESULTS.read_text())["rows"]
    lines = [
        "| what | perplexity | sparsity | calibrate + solve | peak memory |",
        "|---|---:|---:|---:|---:|",
    ]
    for name, row in rows.items():
        seconds = f"{row['seconds']:.0f} s" if "seconds" in row else ""
        memory = f"{row['peak_memory_gb']:.2f} GB" if "peak_memory_gb" in row else ""
        lines.append(f"| {name} | {row['perplexity']:.2f} | {row['sparsity']:.2%} | {seconds} | {memory} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
