"""A process that holds one model and is asked by lines of JSON: `python -m secateur.benchmark.worker MODEL THREADS`."""

from __future__ import annotations

import json
import sys
import time
from typing import Any

from secateur.benchmark.runner import Runner
from secateur.benchmark.runners import kind_of
from secateur.errors import SecateurError, first_line
from secateur.memory import peak_memory


def main(folder: str, threads: str) -> None:
    """Answers until there is nothing more to read."""
    out = sys.stdout
    sys.stdout = sys.stderr  # what runtimes print isn't an answer
    try:
        kind = kind_of(folder).runner()
        start = time.perf_counter()
        runner = kind(folder, int(threads))
        told: dict[str, Any] = {"kind": runner.kind, "runtime": runner.name, "dtype": runner.dtype}
        print(json.dumps({**told, "load": time.perf_counter() - start}), file=out, flush=True)
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
    return {"read": read, "written": written, "peak": peak_memory()}


if __name__ == "__main__":
    main(*sys.argv[1:])
