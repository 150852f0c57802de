"""Prints README's figures from bench/results/protocol.json: python bench/readme_table.py"""

from __future__ import annotations

import json
import textwrap
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


def side_by_side() -> str:
    """Returns the comparison with a peer in words, wrapped as README has it."""
    found = json.loads(RESULTS.read_text())["side_by_side"]
    ours, peer = found["ours"], found["peer"]
    text = (
        f"Side by side with {peer['peer']}'s SparseGPT at 50 % ({len(found['seconds_ours'])} runs each in turns, same "
        f"float32 checkpoint and texts): {found['time_ratio_median']:.2f} times its time and "
        f"{found['memory_ratio_median']:.2f} times its peak memory (medians), perplexity {ours['perplexity']:.2f} "
        f"against {peer['perplexity']:.2f}."
    )
    return textwrap.fill(text, 118, break_on_hyphens=False)


if __name__ == "__main__":
    print(table(), side_by_side(), sep="\n\n")
