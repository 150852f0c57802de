"""Runs the reload checks of many tests: a process without secateur that forks itself for each of them.

What a check proves needs a process that secateur hasn't touched, and most of its time is the import of transformers.
This process imports it once, never loads a model, and hands each check to a copy of itself that ends afterwards.

    python -I tests/reload_server.py RELOAD_FILE

reads a JSON line per check from its input ({"arguments": [...], "threads": "1", "folder": "..."}) and answers each with
one ({"code": 0, "error": ""}).
"""

from __future__ import annotations

import importlib
import json
import os
import runpy
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any


class Server:
    """Answers for `subprocess` where a check starts its process: `run` takes the same command."""

    def __init__(self, file: str, scratch: Path) -> None:
        self.file = file
        self.process = subprocess.Popen(
            [sys.executable, "-I", __file__, file],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(scratch)},
        )

    def run(
        self, command: list[str], *, env: dict[str, str], cwd: str, **options: Any
    ) -> subprocess.CompletedProcess[str]:
        """Has a copy of the process carry out `python -I RELOAD_FILE ARGUMENTS`."""
        python, isolated, file, *arguments = command
        assert (python, isolated, file) == (sys.executable, "-I", self.file)
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        threads = env["OMP_NUM_THREADS"]
        self.process.stdin.write(json.dumps({"arguments": arguments, "threads": threads, "folder": cwd}) + "\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        return subprocess.CompletedProcess(command, answer["code"], "", answer["error"])

    def close(self) -> None:
        """Ends the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def serve(file: str) -> None:
    """Answers until the input ends."""
    torch = importlib.import_module("torch")
    importlib.import_module("transformers.models.llama.modeling_llama")  # brings most of what all models need
    main = runpy.run_path(file)["main"]
    for line in sys.stdin:
        asked = json.loads(line)
        with tempfile.TemporaryFile("w+") as errors:
            child = os.fork()
            if child == 0:
                os.dup2(errors.fileno(), 2)
                os.dup2(2, 1)
                os.chdir(asked["folder"])
                torch.set_num_threads(int(asked["threads"]))
                code = 1
                try:
                    main(*asked["arguments"])
                    code = 0
                except BaseException:
                    traceback.print_exc()
                finally:
                    sys.stderr.flush()
                    os._exit(code)
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            errors.seek(0)
            print(json.dumps({"code": code, "error": errors.read()}), flush=True)


if __name__ == "__main__":
    serve(sys.argv[1])
