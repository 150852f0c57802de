"""What removing units costs and gives on SmolLM2-135M: perplexity, size and speed, with repair and without.

The protocol of bench/protocol.py: 32 calibration windows of 1,024 tokens of C4, quality on the first 20 windows of
1,024 tokens of WikiText-2 raw test, all in float32. Each row is a process of its own that
measures the dense model and the smaller one in turns. Rows that were measured before stay unless --again is given.
Figures go to bench/results/structure.json, and with --table the tables of docs/units.md are printed from them.

    python bench/structure.py --data DATA
    python bench/structure.py --data DATA --peer PEER_PYTHON
    python bench/structure.py --table

PEER_PYTHON is the python of an environment with optipfair, which removes neurons by its default method to the width
that the row `neurons 80 %` ended with.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import yaml

from protocol import HERE, call, check_texts, dense_checkpoint, secateur
from rows import Rows, parser_of, printed

RESULTS = HERE / "results" / "structure.json"
Stages = list[dict[str, Any]]


def _with_others(stage: dict[str, Any]) -> dict[str, Stages]:
    """Returns the ways to remove neurons or heads: repaired, merely chosen by the same, and by magnitude."""
    return {
        "": [stage],
        ", no repair": [{**stage, "repair": False}],
        ", l2, no repair": [{**stage, "score": "l2", "solver": "none", "repair": False}],
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
    for way, score in {"": {"score": "loo-kl"}, ", block influence": {}, ", l2": {"score": "l2"}}.items()
}
LOSS = {"unit": "neuron", "gradient": "loss", "allocation": "global"}
ROWS |= {
    "neurons 80 %, by the loss": [{**LOSS, "params": 0.8}],
    "neurons 80 %, by the loss, reconstruct": [{**LOSS, "params": 0.8, "reconstruct": True}],
    "neurons 80 %, reconstruct": [{"unit": "neuron", "params": 0.8, "reconstruct": True}],
    "neurons and heads 80 %": [{**LOSS, "unit": "neuron,head", "params": 0.8}],
    "2 layers, then neurons 80 %": [{"unit": "layer", "remove": 2, "score": "loo-kl"}, {**LOSS, "params": 0.8}],
    "6 attentions, then neurons 80 %": [
        {"unit": "attention", "remove": 6, "score": "loo-kl"},
        {**LOSS, "params": 0.8},
    ],
    "2 layers, then neurons 80 %, reconstruct": [
        {"unit": "layer", "remove": 2, "score": "loo-kl"},
        {**LOSS, "params": 0.8, "reconstruct": True},
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


def measure(stages: Stages, dense: Path, data: Path, scratch: Path) -> dict[str, Any]:
    """Carries out a recipe and returns what came of it, beside the dense model."""
    recipe = {
        "model": str(dense),
        "output": str(scratch / "out"),
        "overwrite": True,
        "calibration": {
            "data": str(data / "text/c4_sample.jsonl"),
            "samples": 32,
            "length": 1024,
        },
        "stages": [{"prune": stage} for stage in stages],
        "evaluate": {"text": str(data / "text/wiki.test.raw"), "windows": 20, "length": 1024},
    }
    path = scratch / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    found = secateur("run", str(path))
    row = figures(found["comparison"]["dense"], found["comparison"]["others"][0])
    row["widths"] = [[group["unit"], group["left"]] for stage in found["stages"] for group in stage["groups"]]
    row["seconds"] = round(found["seconds"]["calibrate"] + found["seconds"]["prune"], 1)
    row["stages"] = stages
    return row


def figures(dense: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Returns quality, and size and speed relative to the dense model."""
    row = {
        name: round(other[name], 4) for name in ("perplexity", "bits_per_byte", "kl", "top1_agreement") if other[name]
    }
    row |= {
        name: round(other[name] / dense[name], 4) for name in ("parameters", "macs", "bytes_on_disk") if dense[name]
    }
    speeds = ("prefill", "decode", "prefill_one", "decode_one")
    row |= {f"{name}_gain": round(other[name] / dense[name], 3) for name in speeds if dense[name] and other[name]}
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
    )
    return {**figures(found["dense"], found["others"][0]), **done, "widths": [["neuron", width]]}


def table(results: dict[str, Any]) -> str:
    """Returns the table in markdown: a row per cut, with an empty cell for what wasn't measured."""
    lines = [
        "| cut | parameters | file | perplexity | bits per byte | prefill | decode | decode, 1 thread | seconds |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name, row in results["rows"].items():
        gains = [row.get(f"{what}_gain") for what in ("prefill", "decode", "decode_one")]
        speeds = " | ".join(f"{gain:.2f}x" if gain else "" for gain in gains)
        lines.append(
            f"| {name} | {row['parameters']:.1%} | {row['bytes_on_disk']:.1%} | {row['perplexity']:.1f} | "
            f"{row['bits_per_byte']:.3f} | {speeds} | {row['seconds']:.0f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measures and writes the results, row by row."""
    parser = parser_of(__doc__, ROWS)
    parser.add_argument("--peer", metavar="PEER_PYTHON", help="Python of an environment with optipfair.")
    arguments = parser.parse_args()
    if printed(arguments, RESULTS, table):
        return
    check_texts(arguments.data)
    command = "python bench/structure.py --data DATA [--peer PEER_PYTHON]"
    results = Rows(RESULTS, command, [*ROWS, PEER_ROW], arguments.again)
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        dense = scratch / "dense"
        dense_checkpoint(dense)
        for name in results.wanted(arguments.only or ROWS):
            results.take(name, measure(ROWS[name], dense, arguments.data, scratch), quiet=["widths"])
        if arguments.peer:
            left = results.rows["neurons 80 %, l2, no repair"]["widths"][0][1]
            results.take(PEER_ROW, peer(arguments.peer, left, dense, arguments.data, scratch), quiet=["widths"])


if __name__ == "__main__":
    main()
