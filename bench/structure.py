"""What removing units costs and gives on SmolLM2-135M: perplexity, size and speed, with repair and without.

The protocol of bench/protocol.py: 32 calibration windows of 1,024 tokens of C4, quality on the first 20 windows of
1,024 tokens of WikiText-2 raw test, all in float32. Each row is a process of its own. Rows that were measured before
stay unless --again is given. Figures go to bench/results/structure.json, and with --table the tables of docs/units.md
are printed from them.

    python bench/structure.py --data DATA
    python bench/structure.py --data DATA --peer PEER_PYTHON
    python bench/structure.py --data DATA --speeds
    python bench/structure.py --table

PEER_PYTHON is the python of an environment with optipfair, which removes neurons by its default method to the width
that the row `neurons 80 %` ended with. --speeds makes checkpoints of the widths that rows ended with (by magnitude, as
weights make no difference to it) and times them beside the dense one, all in turns, by `secateur bench`.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

from protocol import HERE, call, check_texts, dense_checkpoint, secateur
from rows import Rows, parser_of, printed

RESULTS = HERE / "results" / "structure.json"
Stages = list[dict[str, Any]]
PLAIN = {"score": "l2", "solver": "none", "repair": False}


def _with_others(stage: dict[str, Any]) -> dict[str, Stages]:
    """Returns the ways to remove neurons or heads: repaired, merely chosen by the same, and by magnitude."""
    return {
        "": [stage],
        ", no repair": [{**stage, "repair": False}],
        ", l2, no repair": [{**stage, **PLAIN}],
    }


ROWS: dict[str, Stages] = {
    f"{name}{way}": stages
    for name, stage in {
        "neurons 90 %": {"unit": "neuron", "params": 0.9},
        "neurons 80 %": {"unit": "neuron", "params": 0.8},
        "neurons 70 %": {"unit": "neuron", "params": 0.7},
        "heads, 1 of 3 KV groups": {"unit": "head", "remove": 1},
    }.items()
    for way, stages in _with_others(stage).items()
}
ROWS |= {
    f"layers, {number} of 30{way}": [{"unit": "layer", "remove": number, **score}]
    for number in (2, 4, 6)
    for way, score in {
        "": {"score": "loo-kl"},
        ", one after the other": {"score": "loo-kl", "solver": "greedy"},
        ", block influence": {},
        ", l2": {"score": "l2"},
    }.items()
}
ROWS["layers, 11 of 30, block influence"] = [{"unit": "layer", "remove": 11}]  # 71 % of the parameters, for its speed
LOSS = {"unit": "neuron", "gradient": "loss", "allocation": "global"}
ROWS |= {
    "neurons 80 %, by the loss": [{**LOSS, "params": 0.8}],
    "neurons 80 %, by the loss, reconstruct": [{**LOSS, "params": 0.8, "reconstruct": True}],
    "neurons and heads 80 %": [{**LOSS, "unit": "neuron,head", "params": 0.8}],
    "2 layers, then neurons 80 %": [{"unit": "layer", "remove": 2, "score": "loo-kl"}, {**LOSS, "params": 0.8}],
    "2 layers, then neurons 80 %, no repair": [
        {"unit": "layer", "remove": 2, "score": "loo-kl"},
        {**LOSS, "params": 0.8, "repair": False},
    ],
    "2 layers, then neurons 80 %, l2, no repair": [
        {"unit": "layer", "remove": 2, "score": "l2"},
        {"unit": "neuron", "params": 0.8, **PLAIN},
    ],
    "6 attentions, then neurons 80 %": [
        {"unit": "attention", "remove": 6, "score": "loo-kl"},
        {**LOSS, "params": 0.8},
    ],
    "vocabulary 94 %, then neurons 80 %, reconstruct": [
        {"unit": "token", "params": 0.94},
        {**LOSS, "params": 0.8, "reconstruct": True},
    ],
    "vocabulary 96 %, then neurons 80 %, reconstruct": [
        {"unit": "token", "params": 0.96},
        {**LOSS, "params": 0.8, "reconstruct": True},
    ],
    "vocabulary of the calibration text": [{"unit": "token"}],
}

PEER_ROW = "neurons 80 %, optipfair"
PEER = """
import json, sys, time, torch, transformers, optipfair
dense, out, percentage = sys.argv[1:4]
model = transformers.AutoModelForCausalLM.from_pretrained(dense, dtype=torch.float32)
start = time.perf_counter()
model = optipfair.prune_model(model, pruning_percentage=float(percentage), show_progress=False)
seconds = time.perf_counter() - start
model.save_pretrained(out)
transformers.AutoTokenizer.from_pretrained(dense).save_pretrained(out)
print(json.dumps({"seconds": round(seconds, 1), "peer": "optipfair " + optipfair.__version__}))
"""


TIMED = [
    "neurons 90 %",
    "neurons 80 %",
    "neurons 80 %, by the loss",
    "neurons 70 %",
    "heads, 1 of 3 KV groups",
    "layers, 2 of 30",
    "layers, 4 of 30",
    "layers, 6 of 30",
    "layers, 11 of 30, block influence",
    "2 layers, then neurons 80 %",
    "vocabulary of the calibration text",
]
NEURONS = 1536  # of each MLP of the dense model


def measure(stages: Stages, dense: Path, data: Path, scratch: Path) -> dict[str, Any]:
    """Carries out a recipe and returns what came of it, beside the dense model."""
    evaluate = {"text": str(data / "text/wiki.test.raw"), "windows": 20, "length": 1024, "speed": False}
    found = carried_out(stages, dense, scratch / "out", data, evaluate)
    row = figures(found["comparison"]["dense"], found["comparison"]["others"][0])
    row["widths"] = [[group["unit"], group["left"]] for stage in found["stages"] for group in stage["groups"]]
    row["seconds"] = round(found["seconds"]["calibrate"] + found["seconds"]["prune"], 1)
    row["stages"] = stages
    return row


def carried_out(stages: Stages, dense: Path, out: Path, data: Path, evaluate: dict[str, Any] | None) -> Any:
    """Carries a recipe out, and returns its report."""
    recipe = {
        "model": str(dense),
        "output": str(out),
        "overwrite": True,
        "calibration": {"data": str(data / "text/c4_sample.jsonl"), "samples": 32, "length": 1024},
        "stages": [{"prune": stage} for stage in stages],
        "evaluate": evaluate,
    }
    path = out.with_suffix(".yaml")
    path.write_text(yaml.safe_dump(recipe))
    return secateur("run", str(path))


def speeds(rows: dict[str, Any], dense: Path, data: Path, scratch: Path) -> dict[str, Any]:
    """Times checkpoints as wide as those of rows beside the dense one, on one thread and on all."""
    if missing := [name for name in TIMED if name not in rows]:
        sys.exit(f"--speeds takes the widths of rows, and these weren't measured yet: {', '.join(missing)}.")
    found: dict[str, Any] = {}
    folders = {name: scratch / f"cut{number}" for number, name in enumerate(TIMED)}
    for name, folder in folders.items():
        carried_out([_plain(stage, rows[name]) for stage in ROWS[name]], dense, folder, data, None)
    for threads in dict.fromkeys((1, os.cpu_count() or 1)):
        timed = secateur("bench", str(dense), *map(str, folders.values()), "--threads", str(threads), "--batch", "4")
        before, *others = timed["models"]
        for name, one in zip(folders, others, strict=True):
            row = found.setdefault(name, {"bytes": round(one["bytes"] / before["bytes"], 4), "threads": {}})
            row["threads"][str(threads)] = {
                "prefill": round(one["batch"] / before["batch"], 3),
                "decode": round(one["decode"] / before["decode"], 3),
                "spread": round(max(one["spread"], before["spread"]), 3),
            }
    return found


def _plain(stage: dict[str, Any], row: dict[str, Any]) -> dict[str, Any]:
    """Returns a stage that leaves the same widths by magnitude."""
    if stage["unit"] == "token":
        return stage
    if stage["unit"] == "layer":
        return {"unit": "layer", "remove": stage["remove"], "score": "l2", "solver": "none"}
    if "gradient" not in stage:
        return {**stage, **PLAIN}
    widths = [left for unit, left in row["widths"] if unit == "neuron"]
    gone = {f"model.layers.{number}/neuron": NEURONS - left for number, left in enumerate(widths)}
    return {"unit": "neuron", "amounts": {name: amount for name, amount in gone.items() if amount}, **PLAIN}


def figures(dense: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Returns quality, and size relative to the dense model."""
    row = {
        name: round(other[name], 4) for name in ("perplexity", "bits_per_byte", "kl", "top1_agreement") if other[name]
    }
    row |= {
        name: round(other[name] / dense[name], 4) for name in ("parameters", "macs", "bytes_on_disk") if dense[name]
    }
    return row | {"dense": {name: round(dense[name], 4) for name in ("perplexity", "bits_per_byte")}}


def peer(python: str, left: int, dense: Path, data: Path, scratch: Path) -> dict[str, Any]:
    """Lets the peer remove neurons to a width, and measures beside the dense model as for the other rows."""
    before = json.loads((dense / "config.json").read_text())["intermediate_size"]
    out = scratch / "peer"
    done = call([python, "-c", PEER, str(dense), str(out), str(100 * (before - left) / before)])
    width = json.loads((out / "config.json").read_text())["intermediate_size"]
    found = secateur(
        "compare",
        str(dense),
        str(out),
        "--text",
        str(data / "text/wiki.test.raw"),
        "--windows",
        "20",
        "--length",
        "1024",
        "--no-speed",
    )
    return {**figures(found["dense"], found["others"][0]), **done, "widths": [["neuron", width]]}


def tables(results: dict[str, Any]) -> list[str]:
    """Returns the tables in markdown: of quality and size, and of speed if that was measured."""
    lines = [
        "| cut | parameters | perplexity | bits per byte | KL | seconds |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for name, row in results["rows"].items():
        lines.append(
            f"| {name} | {row['parameters']:.1%} | {row['perplexity']:.1f} | {row['bits_per_byte']:.3f} | "
            f"{row['kl']:.2f} | {row['seconds']:.0f} |"
        )
    return ["\n".join(lines), *([speed_table(results["speeds"])] if "speeds" in results else [])]


def speed_table(speeds: dict[str, Any]) -> str:
    """Returns the table of speeds, with what share of the gain that the bytes allow decoding reaches."""
    threads = list(dict.fromkeys(number for row in speeds.values() for number in row["threads"]))
    heads = [f"{what}, {number} thread{'s' * (number != '1')}" for number in threads for what in ("prefill", "decode")]
    lines = [
        f"| cut | file | {' | '.join(heads)} | of what the bytes allow |",
        "|---|---:|" + "---:|" * (len(heads) + 1),
    ]
    for name, row in speeds.items():
        gains = [row["threads"][number][what] for number in threads for what in ("prefill", "decode")]
        shares = [(row["threads"][number]["decode"] - 1) / (1 / row["bytes"] - 1) for number in threads]
        cells = [*(f"{gain:.2f}x" for gain in gains), ", ".join(f"{share:.0%}" for share in shares)]
        lines.append(f"| {name} | {row['bytes']:.1%} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Measures and writes the results, row by row."""
    parser = parser_of(__doc__, ROWS)
    parser.add_argument("--peer", metavar="PEER_PYTHON", help="Python of an environment with optipfair.")
    parser.add_argument("--speeds", action="store_true", help="Time what rows ended with, and measure no row.")
    arguments = parser.parse_args()
    if printed(arguments, RESULTS, lambda found: "\n\n".join(tables(found))):
        return
    check_texts(arguments.data)
    command = "python bench/structure.py --data DATA [--peer PEER_PYTHON]"
    results = Rows(RESULTS, command, [*ROWS, PEER_ROW], arguments.again)
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        dense = scratch / "dense"
        dense_checkpoint(dense)
        if arguments.speeds:
            results.data["speeds"] = speeds(results.rows, dense, arguments.data, scratch)
            results.write()
            print(speed_table(results.data["speeds"]))
            return
        for name in results.wanted(arguments.only or ROWS):
            results.take(name, measure(ROWS[name], dense, arguments.data, scratch), quiet=["widths"])
        if arguments.peer:
            left = results.rows["neurons 80 %, l2, no repair"]["widths"][0][1]
            results.take(PEER_ROW, peer(arguments.peer, left, dense, arguments.data, scratch), quiet=["widths"])


if __name__ == "__main__":
    main()
