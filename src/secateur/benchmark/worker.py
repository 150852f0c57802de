"""A process that holds one model and is asked by lines of JSON: `python -m secateur.benchmark.worker MODEL THREADS`."""

from __future__ import annotations

import json
import resource
import sys
import time
from typing import Any

import torch

from secateur.benchmark.runners import Runner, runner_of
from secateur.errors import SecateurError, first_line
from secateur.network.quiet import quiet_transformers


def main(folder: str, threads: str) -> None:
    """Answers until there is nothing more to read."""
    torch.set_num_threads(int(threads))
    out = sys.stdout
    sys.stdout = sys.stderr  # what runtimes print isn't an answer
    try:
        with quiet_transformers():
            start = time.perf_counter()
            runner = runner_of(folder)[0](folder)
            told: dict[str, Any] = {"kind": runner.kind, "runtime": runner.name, "load": time.perf_counter() - start}
            print(json.dumps(told), file=out, flush=True)
            for line in sys.stdin:
                print(json.dumps(answered(runner, json.loads(line))), file=out, flush=True)
    except SecateurError as error:
        print(json.dumps({"error": str(error)}), file=out, flush=True)
    except Exception as error:  # whatever a runtime raises
        print(json.dumps({"error": f"{type(error).__name__}: {first_line(error)}"}), file=out, flush=True)


def answered(runner: Runner, asked: dict[str, Any]) -> dict[str, Any]:
    """Returns the seconds of reading and of writing, and the peak memory so far."""
    inputs = runner.example(asked["batch"], asked["length"], asked["seed"])
    start = time.perf_counter()
    state = runner.read(inputs)
    read = time.perf_counter() - start
    start = time.perf_counter()
    if asked["tokens"]:
        runner.write(state, asked["tokens"])
    written = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"read": read, "written": written, "peak": peak * (1 if sys.platform == "darwin" else 1024)}


if __name__ == "__main__":
    main(*sys.argv[1:])
