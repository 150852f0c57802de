"""Several workers on one study in PostgreSQL, one of which is killed."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import optuna
import pytest

from tiny import save_tiny

BINARIES = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb")) if Path("/usr/lib/postgresql").is_dir() else []
TRIALS = 90


@pytest.fixture
def database() -> Iterator[str]:
    """A PostgreSQL server on a free port of this machine, as a URL."""
    if not BINARIES:
        pytest.skip("no PostgreSQL server is installed (apt-get install postgresql)")
    folder = Path(tempfile.mkdtemp(prefix="secateur-postgres-"))
    as_user: list[str] = []
    if os.getuid() == 0:  # which the server refuses to be
        owner = pwd.getpwnam("postgres")
        os.chown(folder, owner.pw_uid, owner.pw_gid)
        as_user = ["runuser", "-u", "postgres", "--"]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    data = folder / "data"
    initdb = [*as_user, str(BINARIES[-1]), "-D", str(data), "-U", "secateur", "-A", "trust", "--no-sync"]
    subprocess.run(initdb, check=True, capture_output=True, cwd=folder)
    server = [*as_user, str(BINARIES[-1].with_name("postgres")), "-D", str(data), "-p", str(port)]
    running = subprocess.Popen(
        [*server, "-h", "127.0.0.1", "-k", str(folder), "-F"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        for _ in range(200):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        yield f"postgresql://secateur@127.0.0.1:{port}/postgres"
    finally:
        stop = [*as_user, str(BINARIES[-1].with_name("pg_ctl")), "-D", str(data), "stop", "-m", "immediate"]
        subprocess.run(stop, check=True, capture_output=True, cwd=folder)
        running.wait(timeout=30)
        shutil.rmtree(folder, ignore_errors=True)


def test_three_workers_share_a_study_and_one_that_is_killed_loses_a_trial(database: str, tmp_path: Path) -> None:
    model = save_tiny("llama", tmp_path / "dense", tokenizer=True)
    text = tmp_path / "text.txt"
    text.write_text("What is cut off is gone; what is left must carry on as if nothing had happened. " * 80)
    given = ["--sparsity", "0.6", "--trials", str(TRIALS), "--tokens", "64", "--tokens", "256", "--losses", "layer"]
    data = ["--calibration", str(text), "--samples", "8", "--length", "32", "--no-evaluate", "--storage", database]
    workers = [
        subprocess.Popen(
            [sys.executable, "-m", "secateur", "search", str(model), "-o", str(tmp_path / f"out{n}"), *given, *data],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for n in range(3)
    ]
    for _ in range(600):
        time.sleep(0.1)
        if len(_workers(database)) == 3:
            break
    workers[0].send_signal(signal.SIGKILL)
    workers[0].wait()
    for worker in workers[1:]:
        _, error = worker.communicate(timeout=300)
        assert worker.returncode == 0, error
    study = optuna.load_study(study_name="secateur", storage=database)
    states = [trial.state for trial in study.trials]
    assert optuna.trial.TrialState.RUNNING not in states
    assert optuna.trial.TrialState.FAIL not in states
    assert TRIALS <= len(states) <= TRIALS + 2
    assert [trial.number for trial in study.trials] == list(range(len(states)))
    assert len({trial.user_attrs["worker"] for trial in study.trials}) == 3
    best = max(trial.value for trial in study.trials if trial.value is not None and trial.user_attrs["tokens"] == 256)
    start = next(trial.value for trial in study.trials if trial.user_attrs["info"].get("start"))
    assert start is not None
    assert best >= start


def _workers(database: str) -> set[str]:
    """Returns who has judged a trial."""
    try:
        trials = optuna.load_study(study_name="secateur", storage=database).trials
    except Exception:  # it isn't there yet
        return set()
    return {trial.user_attrs["worker"] for trial in trials}
