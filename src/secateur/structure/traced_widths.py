"""How many units each group of a traced network keeps, and which."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from secateur.allocation.amounts import Threshold
from secateur.allocation.widths import least_width
from secateur.calibration.statistics import GRADIENTS
from secateur.errors import NothingPrunedError, UsageError
from secateur.evaluation.costs import Costs
from secateur.layer_choice import amounts_of
from secateur.network.graph.costs import GraphCosts
from secateur.network.graph.network import cut_graph
from secateur.network.unit_group import UnitGroup
from secateur.recipe import Prune, bytes_of
from secateur.structure.traced_job import TracedJob, score_of

REPEATS = 5  # of timings for --latency


def least_of(job: TracedJob, group: UnitGroup) -> int:
    """Returns how many units a group keeps at least."""
    return least_width(group.count, job.stage.min_units, job.stage.round_to)


def widths_of(
    job: TracedJob, groups: Sequence[UnitGroup], scores: Mapping[str, Tensor], counter: GraphCosts
) -> dict[str, int] | None:
    """Returns how many units each group keeps; None where a threshold decides."""
    stage = job.stage
    if stage.threshold is not None:
        return None
    if stage.amounts is not None:
        gone = amounts_of(stage.amounts, {one.name: one.count - least_of(job, one) for one in groups}, "group of units")
        return {group.name: group.count - gone[group.name] for group in groups}
    if stage.remove is not None or (stage.sparsity is not None and stage.allocation == "uniform"):
        return {group.name: _own(job, group) for group in groups}
    cost, limit, words = _budget(job, groups, counter)
    widths: Callable[[int], dict[str, int]]
    if stage.allocation == "global":
        order = _ranked(job, groups, scores, counter)
        high, widths = len(order), partial(_left, job, groups, order)
    else:
        high, widths = _even(job, groups)
    if limit >= cost(widths(0)):
        raise NothingPrunedError(f"nothing was pruned: {words} is met as it is. Ask for less.")
    least = cost(widths(high))
    if least > limit:
        raise UsageError(
            f"{words} can't be met: {least / cost(widths(0)):.3f} of what is there is left when all groups keep their "
            "least. Let more stay, or remove other units, too."
        )
    low = 0  # the first step within the budget
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if cost(widths(middle)) <= limit else (middle + 1, high)
    if stage.allocation == "global" and stage.latency is None:
        return _filled(job, groups, order[:low], lambda left: cost(left) <= limit)
    return widths(low)


def _even(job: TracedJob, groups: Sequence[UnitGroup]) -> tuple[int, Callable[[int], dict[str, int]]]:
    """Returns a number of steps, and the widths after so many of them: the same share of every group."""
    most = max(group.count for group in groups)
    return most, lambda step: {group.name: _rounded(job, group, group.count * (most - step) / most) for group in groups}


def _own(job: TracedJob, group: UnitGroup) -> int:
    stage = job.stage
    if least_of(job, group) == group.count:
        return group.count
    gone = stage.remove if stage.remove is not None else round(group.count * (stage.sparsity or 0))
    left = (group.count - gone) // stage.round_to * stage.round_to
    if left < least_of(job, group):
        raise UsageError(
            f"{group.name} has {group.count} units: removing {gone} leaves {max(left, 0)}, and at least "
            f"{least_of(job, group)} have to stay."
        )
    return left


def _rounded(job: TracedJob, group: UnitGroup, width: float) -> int:
    step = job.stage.round_to
    return group.count if width >= group.count else max(least_of(job, group), int(width + 1e-9) // step * step)


def are_losses(stage: Prune) -> bool:
    """Whether a stage's scores of units are losses, which compare from group to group."""
    return stage.solver == "obs" or bool(score_of(stage).needs & GRADIENTS)


def _ranked(job: TracedJob, groups: Sequence[UnitGroup], scores: Mapping[str, Tensor], counter: GraphCosts) -> Tensor:
    """Returns (removals,) places of groups: in which order they lose units.

    Scores that are losses go by loss per what a unit costs; others have scales of their own in each group, and go by
    what they are relative to their group's mean.
    """
    stage, dense = job.stage, counter.of()
    measure = "bytes" if stage.memory is not None else "parameters" if stage.params is not None else "macs"
    losses = are_losses(stage)
    gains, places = [], []
    for place, group in enumerate(groups):
        values = scores[group.name].double()
        scale = float(values.abs().mean()) or 1.0
        if losses:
            saved = getattr(dense, measure) - getattr(counter.of({group.name: group.count - 1}), measure)
            scale = 1.0 if stage.sparsity is not None else max(float(saved), 1e-9)
        gains.append(values.sort().values[: group.count - least_of(job, group)] / scale)
        places.append(torch.full((len(gains[-1]),), place))
    return torch.cat(places)[torch.cat(gains).sort(stable=True).indices]


def _left(job: TracedJob, groups: Sequence[UnitGroup], order: Tensor, removed: int | None = None) -> dict[str, int]:
    """Returns the widths after so many removals, or all, each of them the place of a group."""
    gone = torch.bincount(order[:removed], minlength=len(groups)).tolist()
    return {group.name: _rounded(job, group, group.count - lost) for group, lost in zip(groups, gone, strict=True)}


def _filled(
    job: TracedJob, groups: Sequence[UnitGroup], removals: Tensor, fits: Callable[[Mapping[str, int]], bool]
) -> dict[str, int]:
    """Takes back what went last where the budget has room for it, as single units may be large; returns the widths."""
    gone = torch.ones(len(removals), dtype=torch.bool)
    full: set[int] = set()
    for step in reversed(range(len(removals))):
        place = int(removals[step])
        if place not in full:
            gone[step] = False
            if not fits(_left(job, groups, removals[gone])):
                gone[step] = True
                full.add(place)
        if len(full) == len(groups):
            break
    return _left(job, groups, removals[gone])


def _budget(
    job: TracedJob, groups: Sequence[UnitGroup], counter: GraphCosts
) -> tuple[Callable[[Mapping[str, int]], float], float, str]:
    """Returns what widths cost in the target's measure, the most that is allowed, and the target in words."""
    stage, first = job.stage, job.first or counter.of()
    if stage.sparsity is not None:
        total = sum(group.count for group in groups)
        return lambda left: float(sum(left.values())), total * (1 - stage.sparsity), f"--sparsity {stage.sparsity:g}"
    if stage.latency is not None:
        return _latency(job, groups)
    name, field_name = next(
        (name, what)
        for name, what in {"params": "parameters", "macs": "macs", "memory": "bytes"}.items()
        if getattr(stage, name) is not None
    )
    limit = bytes_of(stage.memory) if stage.memory is not None else getattr(stage, name) * getattr(first, field_name)

    def cost(left: Mapping[str, int]) -> float:
        found: Costs = counter.of(left)
        return float(getattr(found, field_name))

    return cost, float(limit), f"--{name} {getattr(stage, name)}"


def _latency(job: TracedJob, groups: Sequence[UnitGroup]) -> tuple[Callable[[Mapping[str, int]], float], float, str]:
    """Times cut networks as they are asked about, beside the dense one, in turns."""
    assert job.stage.latency is not None
    inputs = job.batches[0].inputs if job.batches else job.network.inputs
    known: dict[tuple[int, ...], float] = {}

    def cost(left: Mapping[str, int]) -> float:
        key = tuple(left[group.name] for group in groups)
        if key not in known:
            keep = {group.name: torch.arange(group.count) < left[group.name] for group in groups}
            with job.timed("latency"):
                known[key] = time_ratio(job.network.model, cut_graph(job.network, keep), inputs)
        return known[key]

    return cost, job.stage.latency, f"--latency {job.stage.latency:g}"


@torch.inference_mode()
def time_ratio(dense: nn.Module, small: nn.Module, inputs: Sequence[Any]) -> float:
    """Returns how long a network takes relative to the dense one: the median of several turns."""
    ratios = []
    for turn in range(REPEATS + 1):
        times = []
        for model in (dense, small):
            start = time.perf_counter()
            model(*inputs)
            times.append(time.perf_counter() - start)
        if turn:  # the first turn warms up
            ratios.append(times[1] / times[0])
    return median(ratios)


def kept_of(
    job: TracedJob, groups: Sequence[UnitGroup], scores: Mapping[str, Tensor], left: Mapping[str, int] | None
) -> dict[str, Tensor]:
    """Returns (units,) bool by group: those that stay, the highest by the scores."""
    keep = {}
    for group in groups:
        values = scores[group.name]
        if left is None:
            assert job.stage.threshold is not None
            stays = values >= Threshold.parse(job.stage.threshold).value(values)
            number = -(-int(stays.sum()) // job.stage.round_to) * job.stage.round_to
            number = max(least_of(job, group), min(group.count, number))  # never the last unit of a layer
        else:
            number = left[group.name]
        stays = torch.zeros(group.count, dtype=torch.bool)
        stays[values.sort(descending=True, stable=True).indices[:number]] = True
        keep[group.name] = stays
    return keep
