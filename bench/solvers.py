"""Which solver gives the lowest perplexity, and at what price: solver x sparsity on SmolLM2-135M.

The protocol of bench/protocol.py: 32 calibration windows of 1,024 tokens of C4, perplexity on the first 20 windows
of 1,024 tokens of WikiText-2 raw test, all in float32. Each run is a process of its own; --jobs of them run at a time,
with so many processors less each, and all seconds are of that kind. Rows that were measured before stay unless --again
is given. Figures go to bench/results/solvers.json, and with --table the table in docs/solvers.md is printed from them.

    python bench/solvers.py --data DATA --jobs 2
    python bench/solvers.py --table
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from protocol import HERE, MODEL, check_texts, perplexity, secateur

RESULTS = HERE / "results" / "solvers.json"
AMOUNTS = {
    "50 %": ["--sparsity", "0.5"],
    "60 %": ["--sparsity", "0.6"],
    "70 %": ["--sparsity", "0.7"],
    "2:4": ["--pattern", "2:4"],
}
CHAINS: dict[str, list[str]] = {
    "sparsegpt": ["--solver", "sparsegpt"],
    "sparsegpt+refit": ["--solver", "sparsegpt+refit"],
    "admm": ["--solver", "admm"],
    "admm+refit": ["--solver", "admm+refit"],
    "alps": ["--solver", "alps"],
    "wanda": ["--score", "wanda"],
    "wanda, dsnot": ["--score", "wanda", "--solver", "dsnot"],
    "wanda, refit": ["--score", "wanda", "--solver", "refit"],
    "wanda, swap+refit": ["--score", "wanda", "--solver", "swap+refit"],
    "admm, owl": ["--solver", "admm", "--allocation", "owl"],
    "admm, alpha": ["--solver", "admm", "--allocation", "alpha"],
    "admm, error": ["--solver", "admm", "--allocation", "error"],
    "admm, error by the loss": ["--solver", "admm", "--allocation", "error", "--gradient", "loss"],
    "admm, reconstruct": ["--solver", "admm", "--reconstruct"],
    "admm, alpha, reconstruct": ["--solver", "admm", "--allocation", "alpha", "--reconstruct"],
}
ALLOCATED = ("60 %", "70 %")  # where layers may give different shares, and need to


def measure(options: list[str], data: Path, out: Path) -> dict[str, Any]:
    """Prunes and evaluates; returns perplexity, mean relative layer error, seconds and peak memory."""
    calibration = ["--calibration", str(data / "text/c4_sample.jsonl"), "--samples", "32", "--length", "1024"]
    found = secateur("prune", MODEL, "-o", str(out), *options, *calibration, "--no-evaluate", "--overwrite")
    layers = found["stages"][0]["layers"]
    quality = perplexity(str(out), data)
    shutil.rmtree(out)
    return {
        **quality,
        "layer_error": statistics.mean(layer["error"] for layer in layers) if layers[0]["error"] is not None else None,
        "seconds": round(found["seconds"]["calibrate"] + found["seconds"]["prune"], 1),
        "solve": round(found["stages"][0]["seconds"]["solve"], 1),
        "peak_memory_gb": round(found["peak_memory_pruning"] / 1e9, 2),
        "options": " ".join(options),
    }


def table(results: dict[str, Any]) -> str:
    """Returns the table in markdown: a row per chain, perplexity / layer error / seconds by amount.

    Seconds are left out where a row says None: other work took part of the processor.
    """
    lines = ["| solver | " + " | ".join(AMOUNTS) + " |", "|---|" + "---:|" * len(AMOUNTS)]
    for chain in CHAINS:
        rows = results["rows"].get(chain, {})
        cells = []
        for amount in AMOUNTS:
            row = rows.get(amount)
            error = "" if not row or row["layer_error"] is None else f" / {row['layer_error']:.4f}"
            seconds = "" if not row or row["seconds"] is None else f" / {row['seconds']:.0f} s"
            cells.append(f"{row['perplexity']:.2f}{error}{seconds}" if row else "")
        if rows:
            lines.append(f"| {chain} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Measures and writes the results, row by row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=HERE.parents[1] / "shared" / "data")
    parser.add_argument("--only", action="append", choices=CHAINS, help="Run only this chain; repeatable.")
    parser.add_argument("--amount", action="append", choices=AMOUNTS, help="Run only this amount; repeatable.")
    parser.add_argument("--cell", action="append", nargs=2, metavar=("AMOUNT", "CHAIN"), help="Run this; repeatable.")
    parser.add_argument("--jobs", type=int, default=1, help="Runs at a time.")
    parser.add_argument("--table", action="store_true", help="Print the table of what was measured.")
    parser.add_argument("--again", action="store_true", help="Measure rows again that are there.")
    arguments = parser.parse_args()
    results: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {"rows": {}}
    if arguments.table:
        print(table(results))
        return
    check_texts(arguments.data)
    for amount, chain in arguments.cell or []:
        if amount not in AMOUNTS or chain not in CHAINS:
            parser.error(f"there is no cell '{amount}' '{chain}'; amounts: {', '.join(AMOUNTS)}.")
    results["command"] = f"python bench/solvers.py --data DATA --jobs {arguments.jobs}"
    threads = max(1, (os.cpu_count() or 1) // arguments.jobs)
    if results["rows"] and results.get("threads") != threads and not arguments.again:
        sys.exit(f"{RESULTS} holds runs of {results.get('threads')} threads each; give as many --jobs, or --again.")
    os.environ["OMP_NUM_THREADS"] = str(threads)
    results["threads"] = threads
    with tempfile.TemporaryDirectory() as scratch, ThreadPoolExecutor(arguments.jobs) as pool:
        cells = [(amount, chain) for amount in arguments.amount or AMOUNTS for chain in arguments.only or CHAINS]
        wanted = {}
        for amount, chain in arguments.cell or cells:
            there = amount in results["rows"].get(chain, {}) and not arguments.again
            if there or ("--allocation" in CHAINS[chain] and amount not in ALLOCATED):
                continue
            compared = ["--per", "output"] if "--score" in CHAINS[chain] and amount != "2:4" else []
            options = [*AMOUNTS[amount], *CHAINS[chain], *compared]
            out = Path(scratch) / f"{amount}, {chain}"
            wanted[pool.submit(measure, options, arguments.data, out)] = (amount, chain)
        for done in as_completed(wanted):
            amount, chain = wanted[done]
            results["rows"].setdefault(chain, {})[amount] = done.result()
            print(amount, chain, done.result(), flush=True)
            RESULTS.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
