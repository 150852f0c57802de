"""Figures of networks that aren't language models: accuracy, loss, the user's own metric, and speed by batch."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from secateur.calibration.batches import Batch, Loss, loss_of
from secateur.errors import CalibrationError, first_line
from secateur.evaluation.costs import Costs
from secateur.evaluation.speed import SAME_SPEED, noise_notes, spread_of
from secateur.network.graph.tracing import evaluating
from secateur.network.graph.values import tensors
from secateur.progress import Progress
from secateur.result import Comparison, Metrics

REPEATS = 5
MANY = 64  # examples in a large batch
LEAST_SECONDS, MOST_PASSES = 0.05, 100  # of one turn

Metric = Callable[[Any, Any], Any]


@dataclass(frozen=True)
class Measured:
    """One network among those that are compared.

    Attributes:
        name: What to call it.
        model: The network.
        costs: What it costs.
        bytes_on_disk: Of its weights; None where nothing was written.
    """

    name: str
    model: nn.Module
    costs: Costs
    bytes_on_disk: int | None = None


def compare_examples(
    networks: Sequence[Measured],
    batches: Sequence[Batch],
    inputs: tuple[Any, ...],
    progress: Progress,
    metric: Metric | None = None,
    loss: Loss | None = None,
    speed: bool = True,
) -> Comparison:
    """Measures networks side by side; the first is the dense one.

    Args:
        networks: What to measure, each in evaluation mode while it is.
        batches: Data for quality; empty leaves quality out. With classes as targets the accuracy is measured, with
            other targets the loss; without any, the agreement of the likeliest output with the dense network's.
        inputs: Example inputs, for speed.
        progress: Shows progress.
        metric: Of the user's own: a function of (output, target) that gives the mean over a batch.
        loss: A function of (output, target) that gives the mean over a batch; None leaves it out, but for targets that
            aren't classes.
        speed: Whether to measure speed.
    """
    sums = [_Sums() for _ in networks]
    with torch.inference_mode():
        for batch in progress.track(batches, "measuring quality"):
            first = None
            for network, own in zip(networks, sums, strict=True):
                with evaluating(network.model):
                    output = network.model(*batch.inputs)
                first = output if first is None else first
                own.add(output, first, batch, metric, loss)
    speeds = {
        size: _speeds([n.model for n in networks], inputs, size, progress) if speed else None for size in (1, MANY)
    }
    metrics = []
    for number, (network, own) in enumerate(zip(networks, sums, strict=True)):
        one, many = (None if known is None else known[number] for known in (speeds[1], speeds[MANY]))
        spreads = [known.spread for known in (one, many) if known is not None]
        metrics.append(
            Metrics(
                name=network.name,
                parameters=network.costs.parameters,
                weights=0,
                zeros=0,
                bytes_on_disk=network.bytes_on_disk,
                macs_each=network.costs.macs,
                batch_one=None if one is None else one.each,
                batch_many=None if many is None else many.each,
                speed_spread=max(spreads, default=None),
                **own.figures(number > 0),
            )
        )
    return Comparison(metrics[0], tuple(metrics[1:]), tuple(_notes(metrics, speed)))


class _Sums:
    """What one network has come to over the batches so far."""

    def __init__(self) -> None:
        self._examples = 0
        self._sums: dict[str, float] = {}

    def add(self, output: Any, dense: Any, batch: Batch, metric: Metric | None, loss: Loss | None) -> None:
        """Adds a batch: what this network and what the dense one makes of it."""
        self._examples += batch.size
        target = batch.target
        logits = next(tensors(output), None)
        classes = isinstance(target, Tensor) and not target.is_floating_point() and not target.is_complex()
        if logits is not None and logits.ndim > 1 and logits.shape[1] > 1:
            best = _best(logits)
            self._sum("top1_agreement", (best == _best(next(tensors(dense)))).float().mean(), batch.size)
            if classes and target.shape == best.shape:
                self._sum("accuracy", (best == target.to(best.device)).float().mean(), batch.size)
        elif logits is not None:
            both = (logits.float().flatten(), next(tensors(dense)).float().flatten())
            self._sum("cosine", functional.cosine_similarity(*both, dim=0), batch.size)
        if metric is not None and target is not None:
            self._sum("metric", metric_of(metric, output, target), batch.size)
        if loss is not None and target is not None:
            self._sum("loss", loss_of(loss, output, target), batch.size)

    def _sum(self, name: str, mean: Any, size: int) -> None:
        self._sums[name] = self._sums.get(name, 0.0) + float(mean) * size

    def figures(self, beside: bool) -> dict[str, Any]:
        """Returns the means; `beside` another network those that compare with it, too."""
        if not self._examples:
            return {}
        against = ("top1_agreement", "cosine")
        means = {name: sum / self._examples for name, sum in self._sums.items() if beside or name not in against}
        return {**means, "examples": self._examples}


def _best(logits: Tensor) -> Tensor:
    """Returns the likeliest class of each place; none, NaN, where there is NaN."""
    best = logits.argmax(1).float()
    return best.masked_fill(logits.isnan().any(1), torch.nan)


def metric_of(metric: Metric, output: Any, target: Any) -> float:
    """Returns what a metric of the user's own makes of a batch.

    Raises:
        CalibrationError: It fails, or gives anything but a number.
    """
    try:
        value = metric(output, target)
    except Exception as error:  # whatever a function of the user's own raises
        raise CalibrationError(f"the metric can't be computed for a batch: {first_line(error)}") from error
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise CalibrationError(
            f"the metric must give one number for a batch but gave a {type(value).__name__}: {first_line(error)}."
        ) from error


@dataclass(frozen=True)
class _Speed:
    """Examples per second, the median of turns, and by how much turns differ."""

    each: float
    spread: float


def _speeds(models: Sequence[nn.Module], inputs: tuple[Any, ...], size: int, progress: Progress) -> list[_Speed] | None:
    """Returns speeds at a batch size, or None if the network takes batches of its own size only.

    A turn of a small network is as many forward passes as take long enough to be timed.
    """
    batch = tuple(_of_size(one, size) for one in inputs)
    times: list[list[float]] = [[] for _ in models]
    passes = 1
    with torch.inference_mode():
        for turn in progress.track(range(REPEATS + 1), f"measuring speed, batch of {size}"):
            for model, own in zip(models, times, strict=True):
                with evaluating(model):
                    start = time.perf_counter()
                    try:
                        for _ in range(passes):
                            model(*batch)
                    except (RuntimeError, ValueError, TypeError):  # sizes stand in its code
                        if turn:
                            raise
                        return None
                own.append((time.perf_counter() - start) / passes)
            if not turn:  # it warms up
                passes = max(1, min(MOST_PASSES, round(LEAST_SECONDS / min(map(min, times)))))
                times = [[] for _ in models]
    return [_Speed(size / median(own), spread_of(own)) for own in times]


def _of_size(value: Any, size: int) -> Any:
    if not isinstance(value, Tensor) or not value.ndim:
        return value
    repeats = -(-size // max(1, len(value)))
    return value.repeat(repeats, *[1] * (value.ndim - 1))[:size]


def _notes(metrics: Sequence[Metrics], speed: bool) -> list[str]:
    """Says what isn't faster although it computes less."""
    dense, notes = metrics[0], []
    noise = max((one.speed_spread or 0.0 for one in metrics), default=0.0)
    notes += noise_notes(noise)
    for other in metrics[1:]:
        for words, name in (("of 1", "batch_one"), (f"of {MANY}", "batch_many")):
            before, after = getattr(dense, name), getattr(other, name)
            if before is None or after is None:
                if speed:
                    notes.append(f"Speed at batches {words} wasn't measured: the network takes no such batch.")
                continue
            if after / before < 1 + SAME_SPEED:
                share = (other.macs_each or 0) / (dense.macs_each or 1)
                why = (
                    "that can't be told from what repeats of the same differ by"
                    if after / before > 1 - noise
                    else "multiply-accumulates aren't what takes the time here. --round-to 8 may help"
                )
                notes.append(
                    f"Not faster at batches {words} ({after / before:.2f}x), with {100 * share:.0f} % of the "
                    f"multiply-accumulates: {why}."
                )
    return notes
