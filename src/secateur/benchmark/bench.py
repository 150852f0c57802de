"""Times checkpoints and exports side by side: one process each, asked in turns, so that a noisy machine is fair."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from statistics import median, quantiles
from typing import Any, TypeVar

from secateur.benchmark.runner import SOUND
from secateur.benchmark.runners import kind_of
from secateur.errors import ProcessError, UsageError
from secateur.network.loading import find
from secateur.progress import Progress

PAUSE = 0.1  # seconds before each turn: the last one's threads may still be spinning (ONNX Runtime's do)
T = TypeVar("T")
WEIGHTS = ("*.safetensors", "*.onnx", "*.onnx.data", "*.bin", "*.xml", "*.gguf")


@dataclass(frozen=True)
class Timed:
    """What was measured of one checkpoint or export. What doesn't apply is None.

    Attributes:
        name: As it was given.
        runtime: What ran it.
        kind: `text`, `encoder`, `images` or `sound`.
        load: Seconds until it could be asked.
        first: Seconds from a prompt to the first token; of what doesn't generate, of one text, image or sound.
        decode: Tokens per second that it writes, one text at a time.
        batch: Tokens per second that it reads, or images per second, in batches.
        real_time: Seconds of work per second of sound.
        peak: Peak memory of its process in bytes.
        bytes: Size of its files.
        dtype: That a checkpoint's weights were held in, or that OpenVINO chose to multiply in; None where nothing says.
        spread: The largest interquartile range of what was repeated, relative to its median.
        perplexity: On a text, where one was given; of checkpoints.
    """

    name: str
    runtime: str
    kind: str
    load: float
    first: float
    decode: float | None
    batch: float | None
    real_time: float | None
    peak: int
    bytes: int
    spread: float
    dtype: str | None = None
    perplexity: float | None = None


@dataclass(frozen=True)
class Bench:
    """What was measured side by side; the first one is what the others are held against.

    Attributes:
        models: What was measured.
        settings: With how many threads, repeats, tokens.
    """

    models: tuple[Timed, ...]
    settings: dict[str, Any] = field(default_factory=dict)


def bench(
    models: Sequence[str | Path],
    *,
    threads: int | None = None,
    repeats: int = 5,
    prompt: int = 128,
    tokens: int = 32,
    batch: int = 8,
    text: str | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Bench:
    """Measures checkpoints and exports in turns.

    Args:
        models: Checkpoints, as for `load`, run by transformers, and folders that `export` wrote, run by what they were
            written for.
        threads: Of each process; None takes all processors.
        repeats: Turns that count; one before them warms up.
        prompt: Tokens that are read.
        tokens: Tokens that are written.
        batch: Texts, or images, that are read at once.
        text: What the perplexity of checkpoints is measured on; None leaves it out.
        seed: Of what is read.
        progress: Shows progress.

    Raises:
        UsageError: A package is missing, a model is of a kind that isn't timed, or kinds differ.
        ProcessError: A runtime failed.
    """
    progress = progress or Progress()
    if not models:
        raise UsageError("bench needs a checkpoint or an export.")
    names = [str(model) for model in models]
    for name in names:
        package = kind_of(name).package
        if package is not None and find_spec(package) is None:
            raise UsageError(f"bench: {name} takes {package.replace('_', '-')}, which isn't installed.")
    threads = threads or os.cpu_count() or 1
    workers: list[Worker] = []
    try:
        workers.extend(Worker(name, threads, seed) for name in names)
        kinds = {worker.told["kind"] for worker in workers}
        if len(kinds) > 1:
            raise UsageError(f"bench: models of one kind are measured beside one another, not {' and '.join(kinds)}.")
        for _ in progress.track(range(1), "warming up"):
            for worker in workers:
                worker.turn(prompt, tokens, batch, counts=False)
        for number in progress.track(range(repeats), "measuring in turns"):
            for worker in rotated(workers, number):
                worker.turn(prompt, tokens, batch)
    finally:
        for worker in workers:
            worker.end()
    found = [worker.timed(prompt, tokens, batch, _perplexity(worker, text, progress)) for worker in workers]
    told: dict[str, Any] = {"threads": threads, "repeats": repeats, "prompt": prompt, "tokens": tokens}
    told |= {"batch": batch, "text": text, "seed": seed}
    return Bench(tuple(found), told)


def rotated(workers: Sequence[T], number: int) -> list[T]:
    """Returns the order of a round, so that nobody always comes first, or after the same one."""
    begin = number % len(workers)
    order = [*workers[begin:], *workers[:begin]]
    return order[::-1] if number % 2 else order


def _perplexity(worker: Worker, text: str | None, progress: Progress) -> float | None:
    if text is None or worker.told["runtime"] != "torch" or worker.told["kind"] != "text":
        return None
    from secateur.api import evaluate  # noqa: PLC0415 (it takes seconds, and only a text needs it)

    found = evaluate(worker.name, text=text, speed=False, progress=progress)
    return found.perplexity


class Worker:
    """A process with one model."""

    def __init__(self, name: str, threads: int, seed: int) -> None:
        self.name, self.seed = name, seed
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "secateur.benchmark.worker", name, str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
        )
        self.told = self._answer()
        self.first: list[float] = []
        self.decode: list[float] = []
        self.many: list[float] = []
        self.peak = 0

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise ProcessError(f"bench: the process with {self.name} ended with {self.process.wait()}.")
        told: dict[str, Any] = json.loads(line)
        if "error" in told:
            raise ProcessError(f"bench: {self.name}: {told['error']}")
        return told

    def _ask(self, **asked: int) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({**asked, "seed": self.seed}) + "\n")
        self.process.stdin.flush()
        return self._answer()

    def turn(self, prompt: int, tokens: int, batch: int, counts: bool = True) -> None:
        """Has it read and write once, alone and in a batch, after a pause."""
        time.sleep(PAUSE)
        writes = tokens if self.told["kind"] in ("text", "sound") else 0
        one = self._ask(batch=1, length=prompt, tokens=writes)
        many = self._ask(batch=batch, length=prompt, tokens=0) if self.told["kind"] != "sound" else None
        if not counts:
            return
        self.first.append(one["read"])
        if writes:
            self.decode.append(one["written"])
        if many is not None:
            self.many.append(many["read"])
        self.peak = max(self.peak, (many or one)["peak"])

    def timed(self, prompt: int, tokens: int, batch: int, perplexity: float | None) -> Timed:
        """Returns what came of all turns."""
        kind = self.told["kind"]
        each = 1 if kind == "images" else prompt
        path = Path(self.name).expanduser()
        path = path if path.is_dir() else find(self.name, False, Progress())
        files = [path] if path.is_file() else [file for pattern in WEIGHTS for file in path.glob(pattern)]
        both = [a + b for a, b in zip(self.first, self.decode, strict=True)] if kind == "sound" else []
        return Timed(
            name=self.name,
            runtime=self.told["runtime"],
            kind=kind,
            load=self.told["load"],
            first=median(self.first),
            decode=tokens / median(self.decode) if self.decode else None,
            batch=batch * each / median(self.many) if self.many else None,
            real_time=median(both) / SOUND if both else None,
            peak=self.peak,
            bytes=sum(file.stat().st_size for file in set(files)),
            dtype=self.told["dtype"],
            spread=max(_spread(times) for times in (self.first, self.decode, self.many) if times),
            perplexity=perplexity,
        )

    def end(self) -> None:
        """Ends the process."""
        if self.process.stdin is not None:
            self.process.stdin.close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()


def _spread(times: Sequence[float]) -> float:
    if len(times) < 2:
        return 0.0
    low, middle, high = quantiles(times, n=4, method="inclusive")
    return (high - low) / middle
