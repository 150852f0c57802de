"""Prints README's figures from the files in bench/results/: python bench/readme_table.py"""

from __future__ import annotations

import json
import textwrap
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"


def read(name: str) -> Any:
    """Returns what a benchmark wrote."""
    return json.loads((RESULTS / f"{name}.json").read_text())


def wrapped(text: str) -> str:
    """Returns a text wrapped as README has it."""
    return textwrap.fill(text, 118, break_on_hyphens=False)


def table() -> str:
    """Returns the table in markdown."""
    rows = read("protocol")["rows"]
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
    """Returns the comparison with a peer, a row per number of threads and precision."""
    lines = [
        "| side by side | times the peer's time | times its peak memory | perplexity | the peer's |",
        "|---|---:|---:|---:|---:|",
    ]
    for threads, found in read("protocol")["side_by_side"].items():
        for name, words in {"ours": "float32", "ours_bf16_forward": "`--compute bfloat16`"}.items():
            if name not in found:
                continue
            ours = found[name]
            lines.append(
                f"| {threads} each, {words} | {ours['time_ratio_median']:.2f} | {ours['memory_ratio_median']:.2f} | "
                f"{ours['perplexity']:.2f} | {found['peer']['perplexity']:.2f} |"
            )
    return "\n".join(lines)


def default() -> str:
    """Returns what the default solver gains over sparsegpt, in words."""
    rows = read("protocol")["rows"]
    pairs = [("admm 50 % (the default)", "sparsegpt 50 %"), ("admm 2:4", "sparsegpt 2:4")]
    lower = [1 - rows[own]["perplexity"] / rows[other]["perplexity"] for own, other in pairs]
    longer = [rows[own]["seconds"] / rows[other]["seconds"] for own, other in pairs]
    return wrapped(
        f"`admm` is the default: its perplexity is {lower[0]:.1%} below that of our own `sparsegpt` at 50 %, in "
        f"{longer[0]:.2f} times the time, and {lower[1]:.1%} below at 2:4, in {longer[1]:.2f} times the time."
    )


def large() -> str:
    """Returns what streaming took, a row per number of blocks."""
    lines = [
        "| solver, blocks | checkpoint | peak memory | less file pages | seconds | read | written |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {name} | {row['model_gb']:.1f} GB | {row['peak_memory_gib']:.2f} GiB | "
        f"{_held(row)} | {row['seconds']} | "
        f"{row['read_from_disk_gb']:.1f} GB | {row['written_to_disk_gb']:.1f} GB |"
        for name, row in read("large")["runs"].items()
    ]
    return "\n".join(lines)


def _held(row: dict[str, Any]) -> str:
    return f"{row['anonymous_gib']:.2f} GiB" if "anonymous_gib" in row else ""


def packed() -> str:
    """Returns what packing gives, a row per amount."""
    lines = ["| amount | pruned layers | whole file | pack | unpack |", "|---|---:|---:|---:|---:|"]
    lines += [
        f"| {name} | {row['layers_ratio']:.1%} | {row['whole_ratio']:.1%} | {row['pack_mb_per_s']:.0f} MB/s | "
        f"{row['unpack_mb_per_s']:.0f} MB/s |"
        for name, row in read("packed")["rows"].items()
    ]
    return "\n".join(lines)


def processes() -> str:
    """Returns what two processes gave against one."""
    found = read("processes")
    one, two = found["rows"]
    return wrapped(
        f"Two processes on the same two cores take {found['time_ratio']:.2f} times the time of one with both (the "
        f"default at 50 %, on another machine than the first table's); the "
        f"perplexities are {two['perplexity']:.2f} and {one['perplexity']:.2f}."
    )


PARTS = {"protocol": (table, side_by_side, default), "large": (large,), "packed": (packed,), "processes": (processes,)}


def measured() -> list[str]:
    """Returns the parts whose figures have been measured, as README has them."""
    return [part() for name, parts in PARTS.items() if (RESULTS / f"{name}.json").is_file() for part in parts]


if __name__ == "__main__":
    print(*measured(), sep="\n\n")
