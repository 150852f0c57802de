"""A model larger than memory: peak memory, seconds and bytes of a streamed run, by number of blocks.

Writes a Llama-shaped checkpoint of random bf16 weights (hidden 4,096, MLP 11,008, vocabulary 32,000: 32 blocks are
6.7 billion parameters, 13.5 GB), prunes it with `--stream`, and removes both again. The model says nothing, so nothing
is evaluated; the reload check runs. Beside the peak of all resident memory, pages of mapped files included, stands the
largest of ten samples a second of what isn't such a page. Figures go to bench/results/large.json.

    python bench/large.py --blocks 16 --blocks 32
    python bench/large.py --blocks 16 --blocks 32 --solver none --score wanda
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from protocol import HERE

RESULTS = HERE / "results" / "large.json"
HIDDEN, NEURONS, HEADS, VOCABULARY = 4096, 11008, 32, 32000
SHAPES = {
    "self_attn.q_proj": (HIDDEN, HIDDEN),
    "self_attn.k_proj": (HIDDEN, HIDDEN),
    "self_attn.v_proj": (HIDDEN, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HIDDEN),
    "mlp.gate_proj": (NEURONS, HIDDEN),
    "mlp.up_proj": (NEURONS, HIDDEN),
    "mlp.down_proj": (HIDDEN, NEURONS),
}


def checkpoint(folder: Path, blocks: int) -> None:
    """Writes the model: a shard per block, and one for the rest."""
    random = torch.Generator().manual_seed(0)

    def weight(*shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=torch.bfloat16).normal_(0, 0.02, generator=random)

    folder.mkdir(parents=True)
    index: dict[str, str] = {}
    for number in range(blocks + 1):
        tensors: dict[str, torch.Tensor] = {}
        if number < blocks:
            prefix = f"model.layers.{number}."
            tensors |= {f"{prefix}{name}.weight": weight(*shape) for name, shape in SHAPES.items()}
            for norm in ("input_layernorm", "post_attention_layernorm"):
                tensors[f"{prefix}{norm}.weight"] = torch.ones(HIDDEN, dtype=torch.bfloat16)
        else:
            tensors["model.embed_tokens.weight"] = weight(VOCABULARY, HIDDEN)
            tensors["lm_head.weight"] = weight(VOCABULARY, HIDDEN)
            tensors["model.norm.weight"] = torch.ones(HIDDEN, dtype=torch.bfloat16)
        name = f"model-{number + 1:05}-of-{blocks + 1:05}.safetensors"
        save_file(tensors, folder / name, metadata={"format": "pt"})
        index |= dict.fromkeys(tensors, name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": HIDDEN,
        "intermediate_size": NEURONS,
        "num_hidden_layers": blocks,
        "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": False,
        "dtype": "bfloat16",
    }
    (folder / "config.json").write_text(json.dumps(config))


def measure(blocks: int, options: list[str], samples: int, length: int, scratch: Path) -> dict[str, Any]:
    """Generates, prunes and removes a model; returns the run's figures."""
    model, out, texts = scratch / "model", scratch / "out", scratch / "texts.jsonl"
    checkpoint(model, blocks)
    tokens = torch.randint(3, VOCABULARY, (samples, length), generator=torch.Generator().manual_seed(1))
    texts.write_text("".join(json.dumps({"input_ids": ids}) + "\n" for ids in tokens.tolist()))
    size = sum(file.stat().st_size for file in model.glob("*.safetensors"))
    calibration = ["--calibration", str(texts), "--samples", str(samples), "--length", str(length)]
    command = [sys.executable, "-m", "secateur", "prune", str(model), "-o", str(out), *options, *calibration]
    moved: dict[str, int] = {}
    anonymous = 0
    with (scratch / "result.json").open("w") as printed:  # a pipe would be full before anyone reads it
        running = subprocess.Popen([*command, "--stream", "--no-evaluate", "--quiet", "--json"], stdout=printed)
    while running.poll() is None:
        try:
            lines = Path(f"/proc/{running.pid}/io").read_text().split("\n")
            moved = {name: int(value) for name, value in (line.split(": ") for line in lines if line)}
            status = Path(f"/proc/{running.pid}/status").read_text().split("\n")
            held = next((line.split()[1] for line in status if line.startswith("RssAnon")), "0")
            anonymous = max(anonymous, 1024 * int(held))
        except (OSError, ValueError):
            pass  # it has just ended
        time.sleep(0.1)
    if running.returncode:
        sys.exit(f"secateur ended with {running.returncode}")
    found = json.loads((scratch / "result.json").read_text())
    stage = found["stages"][0]
    zeros = sum(layer["zeros"] for layer in stage["layers"])
    weights = sum(layer["rows"] * layer["columns"] for layer in stage["layers"])
    written = sum(file.stat().st_size for file in out.glob("*.safetensors"))
    shutil.rmtree(model)
    shutil.rmtree(out)
    return {
        "blocks": blocks,
        "options": " ".join(options),
        "windows": samples,
        "length": length,
        "model_gb": round(size / 1e9, 2),
        "output_gb": round(written / 1e9, 2),
        "sparsity": zeros / weights,
        "peak_memory_gib": round(found["peak_memory"] / 2**30, 2),
        "anonymous_gib": round(anonymous / 2**30, 2),
        "peak_memory_pruning_gib": round(found["peak_memory_pruning"] / 2**30, 2),
        "seconds": round(found["seconds"]["total"]),
        "phases": {name: round(value) for name, value in {**found["seconds"], **stage["seconds"]}.items()},
        "read_gb": round(moved["rchar"] / 1e9, 1),
        "written_gb": round(moved["wchar"] / 1e9, 1),
        "read_from_disk_gb": round(moved["read_bytes"] / 1e9, 1),
        "written_to_disk_gb": round(moved["write_bytes"] / 1e9, 1),
        "reload": found["reload"],
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
    }


def main() -> None:
    """Measures and writes the results, run by run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, action="append", help="Repeatable; default 16 and 32.")
    parser.add_argument("--solver", default="sparsegpt")
    parser.add_argument("--score", help="For solvers that need one, such as none.")
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--scratch", type=Path, help="A folder on a disk with 30 GB of room; default: a temporary one.")
    arguments = parser.parse_args()
    options = ["--sparsity", "0.5", "--solver", arguments.solver]
    options += ["--score", arguments.score] if arguments.score else []
    name = arguments.solver if arguments.score is None else arguments.score
    results: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {"runs": {}}
    results.pop("command", None)
    command = " ".join(["--solver", arguments.solver, *options[4:]])
    for blocks in arguments.blocks or [16, 32]:
        with tempfile.TemporaryDirectory(dir=arguments.scratch) as scratch:
            row = measure(blocks, options, arguments.samples, arguments.length, Path(scratch))
        print(row, flush=True)
        row["command"] = f"python bench/large.py --blocks {blocks} {command}"
        results["runs"][f"{name}, {blocks} blocks"] = row
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
