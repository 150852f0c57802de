"""Removes units of any network whose structure was found by tracing it."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from statistics import median

import torch
from torch import Tensor, nn

from secateur.allocation.amounts import Threshold
from secateur.calibration.batches import Batch, default_loss
from secateur.calibration.readings import Loss, gather, gather_gradients, match_moments
from secateur.calibration.statistics import GRADIENTS, INPUTS, Needs, Statistics
from secateur.errors import NothingPrunedError, UsageError
from secateur.evaluation.costs import Costs
from secateur.linear_algebra import DAMPING
from secateur.network.graph.costs import GraphCosts
from secateur.network.graph.network import GraphNetwork, cut_graph
from secateur.network.graph.tracing import evaluating
from secateur.network.network import Layer
from secateur.network.units import UnitGroup
from secateur.progress import Progress
from secateur.recipe import Prune, bytes_of
from secateur.result import GroupReport, StageReport
from secateur.scores.units import UnitScore, UnitStatistics, check_fit, scored, unit_score_named
from secateur.solvers.removal import elimination, refit
from secateur.timing import timed

REPEATS = 5  # of timings for --latency


@dataclass
class TracedJob:
    """One stage's work on a traced network.

    Attributes:
        network: The network; it isn't changed.
        stage: What to do.
        batches: Calibration batches.
        loss: What gradient scores differentiate.
        seed: For scores that draw.
        progress: Shows progress.
    """

    network: GraphNetwork
    stage: Prune
    batches: Sequence[Batch]
    loss: Loss = default_loss
    seed: int = 0
    progress: Progress = field(default_factory=Progress)
    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    notes: list[str] = field(default_factory=list)

    def timed(self, phase: str) -> AbstractContextManager[None]:
        """Adds the time spent inside to a phase."""
        return timed(self.seconds, phase)


def prune_traced(job: TracedJob) -> tuple[nn.Module, dict[str, Tensor], StageReport]:
    """Returns a smaller copy of a network, which units stayed by group, and what was done.

    Raises:
        UsageError: The target can't be met, or an option makes no sense here.
        NothingPrunedError: Nothing would go.
    """
    with evaluating(job.network.model):
        return _pruned(job)


def _pruned(job: TracedJob) -> tuple[nn.Module, dict[str, Tensor], StageReport]:
    stage, network = job.stage, job.network
    groups = _groups(job)
    counter = GraphCosts(network)
    first = counter.of()
    scores = _scores(job, groups)
    groups = [group for group in groups if group.name in scores]
    left = _widths(job, groups, scores, counter)
    keep = _kept(job, groups, scores, left)
    if all(bool(one.all()) for one in keep.values()):
        raise NothingPrunedError("nothing was pruned: every group keeps all of its units. Ask for more.")
    with job.timed("cut"):
        small = cut_graph(network, keep)
    errors: dict[str, tuple[float, float]] = {}
    if stage.repair:
        errors = _repair(job, small, keep)
        _renormalize(job, small)
    reports = tuple(
        GroupReport(
            group.name, group.unit, group.count, int(keep[group.name].sum()), (), *errors.get(group.name, (None, None))
        )
        for group in groups
    )
    after = counter.of({name: int(one.sum()) for name, one in keep.items()})
    budget = {"first": vars(first), "before": vars(first), "after": vars(after)}
    settings = {"prune": stage.model_dump(mode="json")}
    return small, keep, StageReport(settings, (), dict(job.seconds), tuple(job.notes), (), reports, budget)


def _groups(job: TracedJob) -> list[UnitGroup]:
    groups = [group for group in job.network.groups if group.unit in job.stage.kinds and group.count > 1]
    if not groups:
        known = sorted({group.unit for group in job.network.groups})
        reasons = "".join(f" {one.name}: {one.reason}." for one in job.network.fixed[:3])
        raise UsageError(
            f"{job.network.architecture} has no units of the kind '{job.stage.unit}' that can be cut; it has "
            f"{', '.join(known) or 'none at all'}.{reasons}"
        )
    return groups


def _score(job: TracedJob) -> UnitScore:
    return unit_score_named(job.stage.score or "obs", job.stage.combine)


def _scores(job: TracedJob, groups: Sequence[UnitGroup]) -> dict[str, Tensor]:
    """Returns (units,) float32 by group; groups that no matrix reads are left out where the score needs one."""
    score = _score(job)
    for kind in job.stage.kinds:
        check_fit(score, kind)
    needs = score.needs
    if needs & (INPUTS | GRADIENTS):
        blind = [group.name for group in groups if not group.readers]
        if blind:
            job.notes.append(
                f"{', '.join(blind)}: left whole, as only grouped or transposed layers read them, of whose inputs "
                f"the score '{score.name}' has no statistics."
            )
        groups = [group for group in groups if group.readers]
    layers = list({reader.layer.name: reader.layer for group in groups for reader in group.readers}.values())
    statistics: dict[str, Statistics] = {}
    with job.timed("gather"):
        bar = job.progress.bar("looking at the dense network", len(job.batches))
        statistics = gather(job.network.model, layers, needs, job.batches, bar)
    gradients = {}
    if needs & GRADIENTS:
        with job.timed("gradients"):
            bar = job.progress.bar("gradients of the loss", len(job.batches))
            gradients = gather_gradients(job.network.model, layers, needs, job.batches, job.loss, bar)
    found = {}
    with job.timed("score"):
        for number, group in enumerate(groups):
            inputs = []
            for reader in group.readers:
                known = statistics.get(reader.layer.reads)
                if known is None and gradients:
                    known = Statistics.empty(reader.layer.shape[1], Needs.NOTHING, reader.layer.parameter.device)
                own = gradients.get(reader.layer.name)
                inputs.append(known if known is None or own is None else replace(known, gradients=own))
            random = torch.Generator().manual_seed(job.seed * 1_000_003 + number)
            values = scored(score, group, UnitStatistics(tuple(inputs), random=random))
            found[group.name] = _in_rounds(job, group, statistics, values)
    return found


def _in_rounds(job: TracedJob, group: UnitGroup, statistics: Mapping[str, Statistics], values: Tensor) -> Tensor:
    """With the solver obs, a unit's score is by how much its going raises the error when its turn comes."""
    if job.stage.solver != "obs" or len(group.readers) != 1:
        return values
    (reader,) = group.readers
    W = reader.layer.matrix().float()
    known = statistics[reader.layer.reads]
    path = elimination(W, known.G / max(known.count, 1), reader.index, group.count - 1, job.stage.damping or DAMPING)
    ordered = torch.full((group.count,), torch.inf)
    ordered[path.order] = path.losses.float()
    finite = ordered[ordered.isfinite()]
    return ordered.clamp_max(2 * float(finite.max()) + 1e-30)


def _normalized(groups: Sequence[UnitGroup], scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns scores relative to their group's mean, for a ranking over groups of different scales."""
    return {group.name: scores[group.name] / (float(scores[group.name].abs().mean()) or 1.0) for group in groups}


def _least(job: TracedJob, group: UnitGroup) -> int:
    return min(group.count, max(1, job.stage.min_units))


def _widths(
    job: TracedJob, groups: Sequence[UnitGroup], scores: Mapping[str, Tensor], counter: GraphCosts
) -> dict[str, int] | None:
    """Returns how many units each group keeps; None where a threshold decides."""
    stage = job.stage
    if stage.threshold is not None:
        return None
    if stage.remove is not None or (stage.sparsity is not None and stage.allocation == "uniform"):
        return {group.name: _own(job, group) for group in groups}
    if stage.allocation == "uniform":
        most = max(group.count for group in groups)
        levels = [
            {group.name: _rounded(job, group, group.count * step / most) for group in groups}
            for step in range(most, -1, -1)
        ]
    elif stage.allocation == "global":
        levels = _ranked(job, groups, scores)
    else:
        raise UsageError(
            f"--allocation {stage.allocation} is for language models; other networks take uniform, global."
        )
    cost, limit, words = _budget(job, groups, counter)
    if limit >= cost(levels[0]):
        raise NothingPrunedError(f"nothing was pruned: {words} is met as it is. Ask for less.")
    low, high = 0, len(levels) - 1  # the first level within the budget
    if cost(levels[high]) > limit:
        raise UsageError(
            f"{words} can't be met: {limit:,.4g} asked for, and {cost(levels[high]):,.4g} are left when all groups "
            "keep their least."
        )
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if cost(levels[middle]) <= limit else (middle + 1, high)
    return levels[low]


def _own(job: TracedJob, group: UnitGroup) -> int:
    stage = job.stage
    gone = stage.remove if stage.remove is not None else round(group.count * (stage.sparsity or 0))
    left = (group.count - gone) // stage.round_to * stage.round_to
    if left < _least(job, group):
        raise UsageError(
            f"{group.name} has {group.count} units: removing {gone} leaves {max(left, 0)}, and at least "
            f"{_least(job, group)} have to stay."
        )
    return left


def _rounded(job: TracedJob, group: UnitGroup, width: float) -> int:
    step = job.stage.round_to
    return group.count if width >= group.count else max(_least(job, group), int(width + 1e-9) // step * step)


def _ranked(job: TracedJob, groups: Sequence[UnitGroup], scores: Mapping[str, Tensor]) -> list[dict[str, int]]:
    """Returns widths after each of the removals in the order of score per parameter."""
    even = _normalized(groups, scores)
    rows = []
    for place, group in enumerate(groups):
        each = group.parameters_each().double()
        gain = even[group.name].sort().values[: group.count - _least(job, group)].double()
        rows += [(float(value / each.mean()), place) for value in gain]
    gone = [0] * len(groups)
    levels = [{group.name: group.count for group in groups}]
    for _, place in sorted(rows):
        gone[place] += 1
        group = groups[place]
        levels.append({**levels[-1], group.name: _rounded(job, group, group.count - gone[place])})
    return levels


def _budget(
    job: TracedJob, groups: Sequence[UnitGroup], counter: GraphCosts
) -> tuple[Callable[[Mapping[str, int]], float], float, str]:
    """Returns what widths cost in the target's measure, the most that is allowed, and the target in words."""
    stage, first = job.stage, counter.of()
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
    inputs = job.batches[0].inputs
    known: dict[tuple[int, ...], float] = {}

    def cost(left: Mapping[str, int]) -> float:
        key = tuple(left[group.name] for group in groups)
        if key not in known:
            keep = {group.name: torch.arange(group.count) < left[group.name] for group in groups}
            models = (job.network.model, cut_graph(job.network, keep))
            ratios = []
            with torch.inference_mode(), job.timed("latency"):
                for turn in range(REPEATS + 1):
                    times = []
                    for model in models:
                        start = time.perf_counter()
                        model(*inputs)
                        times.append(time.perf_counter() - start)
                    if turn:
                        ratios.append(times[1] / times[0])
            known[key] = median(ratios)
        return known[key]

    return cost, job.stage.latency, f"--latency {job.stage.latency:g}"


def _kept(
    job: TracedJob, groups: Sequence[UnitGroup], scores: Mapping[str, Tensor], left: Mapping[str, int] | None
) -> dict[str, Tensor]:
    keep = {}
    for group in groups:
        values = scores[group.name]
        if left is None:
            assert job.stage.threshold is not None
            stays = values >= Threshold.parse(job.stage.threshold).value(values)
            number = -(-int(stays.sum()) // job.stage.round_to) * job.stage.round_to
            number = max(_least(job, group), min(group.count, number))  # never the last unit of a layer
        else:
            number = left[group.name]
        stays = torch.zeros(group.count, dtype=torch.bool)
        stays[values.sort(descending=True, stable=True).indices[:number]] = True
        keep[group.name] = stays
    return keep


def _repair(job: TracedJob, small: nn.Module, keep: Mapping[str, Tensor]) -> dict[str, tuple[float, float]]:
    """Fits every layer that reads units which went to what the dense one gives, in the order of computation."""
    network = job.network
    touched: dict[str, list[UnitGroup]] = defaultdict(list)
    for group in network.groups:
        if group.name in keep and not bool(keep[group.name].all()):
            for reader in group.readers:
                touched[reader.layer.name].append(group)
    order = [name for name, _ in network.found.readers if name in touched]
    errors: dict[str, list[tuple[float, float]]] = defaultdict(list)
    small.eval()
    with job.timed("repair"):
        for name in job.progress.track(list(dict.fromkeys(order)), "repairing"):
            big, module = network.layer(name), small.get_submodule(name)
            little = Layer(name, module.weight, big.layout, name, module)  # type: ignore[arg-type]
            rows = _rows_left(network, name, keep)
            moments = match_moments(network.model, small, (big, little), rows, job.batches)
            bias = getattr(module, "bias", None)
            W = little.matrix().float()
            every = torch.ones(W.shape[1], dtype=torch.bool)
            done = refit(
                W, None if bias is None else bias.detach().float(), moments, every, job.stage.damping or DAMPING
            )
            with torch.no_grad():
                little.matrix().copy_(done.W)
                if bias is not None and done.bias is not None:
                    bias.copy_(done.bias)
            for group in touched[name]:
                errors[group.name].append((done.error_before, done.error))
    return {
        name: (sum(a for a, _ in pairs) / len(pairs), sum(b for _, b in pairs) / len(pairs))
        for name, pairs in errors.items()
    }


def _rows_left(network: GraphNetwork, name: str, keep: Mapping[str, Tensor]) -> Tensor:
    """Returns which outputs of a layer are left, by their index in the dense network."""
    stays = torch.ones(network.layer(name).shape[0], dtype=torch.bool)
    for group in network.groups:
        if group.name in keep:
            for part in group.slices:
                if (part.name, part.axis) == (f"{name}.weight", 0):
                    stays[part.index[~keep[group.name]].flatten()] = False
    return stays.nonzero().flatten()


def _renormalize(job: TracedJob, small: nn.Module) -> None:
    """Estimates the statistics of batch norms anew on the calibration batches: means over all of them."""
    norms = [
        module for module in small.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None
    ]  # fmt: skip
    if not norms or sum(batch.size for batch in job.batches) < 2:
        return
    before = [(module, module.momentum) for module in norms]
    with job.timed("renormalize"), torch.no_grad():
        small.eval()
        for module in norms:
            module.reset_running_stats()
            module.momentum = None  # the mean of all batches
            module.train()
        for batch in job.batches:
            small(*batch.inputs)
        small.eval()
    for module, momentum in before:
        module.momentum = momentum
