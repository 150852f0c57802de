"""What a search finds on SmolLM2-135M that uniform amounts and rules don't, in one and the same wall-clock budget.

The protocol of bench/protocol.py: 32 calibration windows of 1,024 tokens of C4, perplexity on the first 20 windows of
1,024 tokens of WikiText-2 raw test, everything in float32. Levels are solved once for all rows, and their time is given
beside. Rows that were measured before stay unless --again is given. Figures go to bench/results/search.json, and with
--table the table of docs/search.md is printed from them.

    python bench/search.py --data DATA --levels FOLDER
    python bench/search.py --table
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from protocol import HERE, MODEL, check_texts, secateur
from rows import Rows, parser_of, printed

RESULTS = HERE / "results" / "search.json"
MINUTES = 20
SEARCHES = ("evolution", "policy", "tpe", "random")
TARGETS = {"70 % of the weights": ["--sparsity", "0.7"], "60 % of the weights": ["--sparsity", "0.6"]}
PARAMETERS = {"75 % of the parameters": ["--params", "0.75"]}


def rows() -> dict[str, list[str]]:
    """Returns the command of each row."""
    found: dict[str, list[str]] = {}
    for name, target in TARGETS.items():
        found[f"{name}, uniform"] = ["prune", *target]
        if "0.7" in target:
            found[f"{name}, owl"] = ["prune", *target, "--allocation", "owl"]
        found[f"{name}, knapsack"] = ["search", *target, "--trials", "1"]
        searches = SEARCHES if "0.7" in target else ("evolution",)
        for strategy in searches:
            found[f"{name}, {strategy}"] = ["search", *target, "--strategy", strategy, "--seconds", str(60 * MINUTES)]
    for name, target in PARAMETERS.items():
        found[f"{name}, uniform"] = ["prune", "--unit", "neuron", *target]
        found[f"{name}, by the loss"] = [
            *("prune", "--unit", "neuron", *target, "--gradient", "loss", "--allocation", "global")
        ]
        found[f"{name}, knapsack"] = ["search", *target, "--trials", "1"]
        for strategy in SEARCHES:
            found[f"{name}, {strategy}"] = ["search", *target, "--strategy", strategy, "--seconds", str(60 * MINUTES)]
    return found


def measure(command: list[str], data: Path, levels: Path, out: Path) -> dict[str, Any]:
    """Carries a row out; returns perplexity, trials and seconds."""
    text = ["--calibration", str(data / "text/c4_sample.jsonl"), "--samples", "32", "--length", "1024"]
    judged = ["--evaluate", str(data / "text/wiki.test.raw"), "--windows", "20", "--overwrite"]
    searched = ["--levels", str(levels)] if command[0] == "search" else []
    found = secateur(command[0], MODEL, "-o", str(out), *command[1:], *searched, *text, *judged)
    dense, (other,) = found["comparison"]["dense"], found["comparison"]["others"]
    row = {
        "perplexity": round(other["perplexity"], 2),
        "kl": round(other["kl"], 4),
        "parameters": round(other["parameters"] / dense["parameters"], 4),
        "sparsity": round(other["zeros"] / other["weights"], 4),
        "seconds": round(found["seconds"]["total"]),
    }
    told = found["search"]
    if told is not None:
        row["seconds"] += round(told["seconds"] + told["seconds_levels"])
        names = ("trials", "start", "best", "solved", "seconds", "seconds_levels")
        row["search"] = {name: round(told[name], 4) for name in names}
    return row


def table(results: dict[str, Any]) -> str:
    """Returns the table in markdown."""
    lines = [
        "| what | perplexity | KL | best candidate | solved once more | trials | searching | solving levels |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name in rows():
        row = results["rows"].get(name)
        if row:
            cells = [name, f"{row['perplexity']:.2f}", f"{row['kl']:.3f}"]
            told = row.get("search")
            if told:
                cells += [f"{told['best']:.3f}", f"{told['solved']:.3f}", str(told["trials"])]
                cells += [f"{told['seconds']:.0f} s", f"{told['seconds_levels']:.0f} s"]
            lines.append(f"| {' | '.join([*cells, *[''] * (8 - len(cells))])} |")
    return "\n".join(lines)


def main() -> None:
    """Measures and writes the results, row by row."""
    parser = parser_of(__doc__, rows())
    parser.add_argument("--levels", type=Path, help="Where levels are kept from row to row.")
    arguments = parser.parse_args()
    if printed(arguments, RESULTS, table):
        return
    check_texts(arguments.data)
    results = Rows(RESULTS, "python bench/search.py --data DATA --levels FOLDER", rows(), arguments.again)
    with tempfile.TemporaryDirectory() as scratch:
        levels = arguments.levels or Path(scratch) / "levels"
        for name in results.wanted(arguments.only):
            results.take(name, measure(rows()[name], arguments.data, levels, Path(scratch) / "out"))


if __name__ == "__main__":
    main()
