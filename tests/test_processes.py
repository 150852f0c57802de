"""Two processes on one run, over gloo."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from command_line import Outcome, secateur
from tiny import save_tiny

TEXT = "Many hands make light work, if nobody waits for somebody else all the time. " * 200


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return save_tiny("llama", tmp_path / "source", tokenizer=True)


@pytest.fixture
def text(tmp_path: Path) -> str:
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return str(path)


def options(source: Path, out: Path, text: str, *more: str) -> list[str]:
    calibration = ["--calibration", text, "--samples", "150", "--length", "32"]  # three batches: two and one
    return ["prune", str(source), "-o", str(out), *calibration, "--no-evaluate", *more]


def in_two(arguments: list[str]) -> Outcome:
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "secateur"]
    done = subprocess.run([*start, *arguments], capture_output=True, text=True, check=False, timeout=300)
    return Outcome(done.returncode, done.stdout, done.stderr)


@pytest.mark.parametrize(
    "more",
    [
        ["--sparsity", "0.5"],
        ["--sparsity", "0.5", "--solver", "sparsegpt", "--allocation", "owl", "--reconstruct"],
        ["--pattern", "2:4", "--score", "taylor", "--solver", "swap"],
        ["--sparsity", "0.5", "--score", "snip", "--gradient", "loss"],
        ["--sparsity", "0.5", "--stream", "--solver", "sparsegpt", "--include", "*", "--include", "lm_head"],
    ],
    ids=str,
)
def test_two_processes_give_what_one_gives(more: list[str], source: Path, text: str, tmp_path: Path) -> None:
    found = {}
    for processes in (1, 2):
        out = tmp_path / str(processes)
        arguments = [*options(source, out, text, *more), "--json"]
        done = secateur(*arguments) if processes == 1 else in_two(arguments)
        assert done.code == 0, done.err
        json.loads(done.out)  # one report, not two
        found[processes] = {
            name: tensor for shard in sorted(out.glob("*.safetensors")) for name, tensor in load_file(shard).items()
        }
        assert [path.name for path in tmp_path.glob(".*")] == []
    one, two = found[1], found[2]
    changed = [name for name in one if not torch.allclose(one[name], two[name], rtol=1e-3, atol=1e-5)]
    different = sum(int(((one[name] == 0) != (two[name] == 0)).sum()) for name in one)
    weights = sum(tensor.numel() for tensor in one.values())
    assert different <= 0.002 * weights, (different, weights, changed)
    assert sum(int((tensor == 0).sum()) for tensor in one.values()) == sum(
        int((tensor == 0).sum()) for tensor in two.values()
    )


def test_two_processes_share_out_the_experts_of_one_weight(text: str, tmp_path: Path) -> None:
    source = save_tiny("mixtral", tmp_path / "source", tokenizer=True)
    test_two_processes_give_what_one_gives(["--sparsity", "0.5"], source, text, tmp_path)


def test_misuse_tells_the_ranks_apart(source: Path, text: str, tmp_path: Path) -> None:
    done = in_two(options(source, tmp_path / "out", text, "--sparsity", "1.5"))
    assert done.code != 0
    said = [line for line in done.err.splitlines() if "between 0 and 1" in line]
    assert [line.startswith("error: rank 1: ") for line in sorted(said)] in ([False], [True], [False, True])
    assert not (tmp_path / "out").exists()


def test_a_rank_that_dies_stops_the_others_with_the_reason(source: Path, text: str, tmp_path: Path) -> None:
    """Both are started by hand, so that nothing but the broken connection can tell the first of it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = [*options(source, tmp_path / "out", text, "--sparsity", "0.5"), "--solver", "alps", "--samples", "2000"]
    ranks = []
    for rank in (0, 1):
        together = {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        ranks.append(
            subprocess.Popen(
                [sys.executable, "-m", "secateur", *arguments],
                env={**os.environ, **together, "OMP_NUM_THREADS": "1"},
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    journal = tmp_path / ".out.run" / "journal.json"
    for _ in range(600):
        time.sleep(0.1)
        if journal.is_file():
            break
    else:
        pytest.fail(f"the run never began: {[rank.poll() for rank in ranks]}")
    ranks[1].send_signal(signal.SIGKILL)
    start = time.monotonic()
    _, error = ranks[0].communicate(timeout=60)
    assert ranks[0].returncode == 1, error
    assert "another process of this run has died" in error
    assert "--resume" in error
    assert time.monotonic() - start < 30
    assert not (tmp_path / "out").exists()


def test_an_incomplete_environment_is_named(source: Path, text: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "secateur", *options(source, tmp_path / "out", text, "--sparsity", "0.5")],
        env={**os.environ, "WORLD_SIZE": "2"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "torchrun" in done.stderr
