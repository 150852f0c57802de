"""One-shot pruning of SmolLM2-135M on the field's protocol: perplexity, seconds and peak memory.

Calibration: the first 32 windows of 1,024 tokens of a C4 sample. Evaluation: the first 20 windows of 1,024
tokens of WikiText-2 raw test. Each run is a process of its own, one after the other; figures go to
bench/results/protocol.json. Texts aren't part of the project: --data names a folder that holds
text/c4_sample.jsonl and text/wiki.test.raw.

    python bench/protocol.py --data DATA
    python bench/protocol.py --data DATA --peer PEER_PYTHON PEER_SCRIPT

A peer is run side by side, `--repeats` times in turns with our sparsegpt, once in float32 as the peer and once with a
forward in bf16, by as many threads as OMP_NUM_THREADS says: `MODEL=folder PEER_PYTHON PEER_SCRIPT sparsegpt 0.5 0:0
OUT` has to print one JSON object with `sec` and `peak_rss_gb`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "protocol.json"
MODEL = "demo:smollm2-135m"
WINDOWS = ["--windows", "20", "--length", "1024"]
RUNS: dict[str, list[str]] = {
    "admm 50 % (the default)": ["--sparsity", "0.5"],
    "sparsegpt 50 %": ["--sparsity", "0.5", "--solver", "sparsegpt"],
    "sparsegpt 50 %, bf16 forward": ["--sparsity", "0.5", "--solver", "sparsegpt", "--compute", "bfloat16"],
    "wanda 50 %, per output": ["--sparsity", "0.5", "--score", "wanda", "--per", "output"],
    "l1 50 %": ["--sparsity", "0.5", "--score", "l1"],
    "admm 2:4": ["--pattern", "2:4"],
    "sparsegpt 2:4": ["--pattern", "2:4", "--solver", "sparsegpt"],
}


def call(command: list[str], **environment: str) -> Any:
    """Runs a command and returns the last JSON value that it prints."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **environment})
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr}")
    text = done.stdout.strip()
    return json.loads(text if text.startswith("{\n") else text.splitlines()[-1])


def secateur(*arguments: str) -> Any:
    """Runs the command line with --json."""
    return call([sys.executable, "-m", "secateur", *arguments, "--json", "--quiet"])


def prune(options: list[str], data: Path, out: Path, model: str) -> dict[str, Any]:
    """Prunes; returns seconds of calibrating plus solving, and the peak memory until then."""
    calibration = ["--calibration", str(data / "text/c4_sample.jsonl"), "--samples", "32", "--length", "1024"]
    found = secateur("prune", model, "-o", str(out), *options, *calibration, "--no-evaluate", "--overwrite")
    return {
        "seconds": round(found["seconds"]["calibrate"] + found["seconds"]["prune"], 1),
        "phases": {name: round(value, 1) for name, value in found["stages"][0]["seconds"].items()},
        "peak_memory_gb": round(found["peak_memory_pruning"] / 1e9, 2),
    }


def perplexity(model: str, data: Path) -> dict[str, Any]:
    """Evaluates on WikiText-2 raw test."""
    found = secateur("evaluate", model, "--text", str(data / "text/wiki.test.raw"), *WINDOWS, "--no-speed")
    return {"perplexity": round(found["perplexity"], 2), "sparsity": round(found["zeros"] / found["weights"], 6)}


def dense_checkpoint(folder: Path) -> None:
    """Writes the dense model in float32: the demo's own file is a quantized one."""
    code = "import sys, secateur; n = secateur.load(sys.argv[1]); n.model.save_pretrained(sys.argv[2]); "
    code += "n.tokenizer.save_pretrained(sys.argv[2]); print('{}')"
    call([sys.executable, "-c", code, MODEL, str(folder)])


def check_texts(data: Path) -> None:
    """Ends the program if a folder doesn't hold the texts."""
    if not (data / "text/wiki.test.raw").is_file():
        sys.exit(f"{data} has no text/wiki.test.raw; name the folder with --data.")


def side_by_side(python: str, script: str, data: Path, scratch: Path, repeats: int) -> dict[str, Any]:
    """Our sparsegpt and the peer's in turns, on one and the same float32 checkpoint folder."""
    dense = scratch / "dense"
    dense_checkpoint(dense)
    theirs = []
    ours: dict[str, list[dict[str, Any]]] = {"ours": [], "ours_bf16_forward": []}
    for _ in range(repeats):
        theirs.append(
            call([python, script, "sparsegpt", "0.5", "0:0", str(scratch / "peer")], MODEL=str(dense), DATA=str(data))
        )
        for name, row in zip(ours, ("sparsegpt 50 %", "sparsegpt 50 %, bf16 forward"), strict=True):
            ours[name].append(prune(RUNS[row], data, scratch / name, str(dense)))
    found: dict[str, Any] = {"peer": {**theirs[-1], **perplexity(str(scratch / "peer"), data)}}
    found["peer"]["seconds"] = [one["sec"] for one in theirs]
    for name, runs in ours.items():
        pairs = list(zip(runs, theirs, strict=True))
        found[name] = {
            **runs[-1],
            **perplexity(str(scratch / name), data),
            "seconds": [one["seconds"] for one in runs],
            "time_ratio_median": round(statistics.median(own["seconds"] / peer["sec"] for own, peer in pairs), 3),
            "memory_ratio_median": round(
                statistics.median(own["peak_memory_gb"] / peer["peak_rss_gb"] for own, peer in pairs), 3
            ),
        }
    return found


def main() -> None:
    """Measures and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=HERE.parents[1] / "shared" / "data")
    parser.add_argument("--peer", nargs=2, metavar=("PEER_PYTHON", "PEER_SCRIPT"))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", action="append", help="Run only this row; repeatable. The others stay as they were.")
    arguments = parser.parse_args()
    check_texts(arguments.data)
    results: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {"rows": {}}
    results |= {"model": MODEL, "machine": f"{platform.machine()}, {os.cpu_count()} processors"}
    results["command"] = "python bench/protocol.py --data DATA [--peer PEER_PYTHON PEER_SCRIPT]"
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        wanted = [name for name in ["dense", *RUNS] if not arguments.only or name in arguments.only]
        for name in wanted:
            if name == "dense":
                row = perplexity(MODEL, arguments.data)
            else:
                row = prune(RUNS[name], arguments.data, scratch / "out", MODEL)
                row |= perplexity(str(scratch / "out"), arguments.data)
                row["options"] = " ".join(RUNS[name])
            results["rows"][name] = row
            print(name, row, flush=True)
            write(results)
        if arguments.peer:
            threads = int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1))
            found = side_by_side(*arguments.peer, arguments.data, scratch, arguments.repeats)
            results.setdefault("side_by_side", {})["1 thread" if threads == 1 else f"{threads} threads"] = found
            print(found)
            write(results)


def write(results: dict[str, Any]) -> None:
    """Writes what is known so far."""
    RESULTS.parent.mkdir(exist_ok=True)
    results["rows"] = {name: results["rows"][name] for name in ["dense", *RUNS] if name in results["rows"]}
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
