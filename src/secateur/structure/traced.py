"""Removes units of any network whose structure was found by tracing it."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from secateur.allocation.amounts import Threshold
from secateur.allocation.widths import least_width
from secateur.calibration.batches import Batch, Loss, default_loss
from secateur.calibration.readings import gather, gather_gradients
from secateur.calibration.statistics import GRADIENTS, INPUTS, Gradients, Needs, Statistics
from secateur.errors import ConstantScoreError, NothingPrunedError, ScoreError, UsageError
from secateur.evaluation.costs import Costs
from secateur.layer_choice import amounts_of, chosen_groups
from secateur.network.graph.behind import mean_free
from secateur.network.graph.costs import GraphCosts
from secateur.network.graph.network import GraphNetwork, cut_graph
from secateur.network.graph.tracing import evaluating
from secateur.network.unit_group import UnitGroup
from secateur.progress import Progress
from secateur.recipe import TRACED_UNITS, Prune, bytes_of
from secateur.result import GroupReport, StageReport
from secateur.scores.units import UnitScore, UnitStatistics, check_fit, scored, unit_score_named
from secateur.structure.traced_obs import losses_in_rounds
from secateur.structure.traced_repair import repair
from secateur.timing import timed

GRADIENT = "the loss on the calibration data"  # what gradient scores differentiate, for the report
WEIGHTS_TRAINED = (
    "single weights of networks other than language models are pruned while they train, by secateur.TrainingPruner. "
    "Whole units go in one pass: --unit filter or another kind, a list of which inspect --units gives."
)
COARSE = 0.02  # more below the target than that is worth a note
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
        first: What the run's first network cost, of which targets are shares; None if it is this one.
        scores: (units,) float32 by group, if they are known; None computes them.
    """

    network: GraphNetwork
    stage: Prune
    batches: Sequence[Batch]
    loss: Loss = default_loss
    seed: int = 0
    progress: Progress = field(default_factory=Progress)
    first: Costs | None = None
    scores: Mapping[str, Tensor] | None = None
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
        small, keep, report = _pruned(job)
    modes = {name: module.training for name, module in job.network.model.named_modules()}
    for name, module in small.named_modules():
        module.training = modes.get(name, module.training)
    return small, keep, report


def check_stage(stage: Prune, calibrated: bool) -> None:
    """Raises UsageError if a stage asks for what is only there for language models, or for data that isn't there.

    Args:
        stage: What to do.
        calibrated: Whether there is calibration data.
    """
    if not stage.structured:
        raise UsageError(WEIGHTS_TRAINED)
    unknown = [kind for kind in stage.kinds if kind not in TRACED_UNITS]
    if unknown:
        raise UsageError(
            f"networks other than language models have units of the kinds {', '.join(TRACED_UNITS)}, not "
            f"'{unknown[0]}'."
        )
    if stage.allocation not in ("uniform", "global"):
        raise UsageError(f"allocation '{stage.allocation}' is for language models; give uniform or global.")
    for option in ("reconstruct", "pad"):
        if getattr(stage, option):
            raise UsageError(f"'{option}' is for language models; leave it out.")
    score = _score(stage)
    for kind in stage.kinds:
        check_fit(score, kind)
    if stage.gradient == "loss" and not score.needs & GRADIENTS:
        raise UsageError("gradient 'loss' goes with the scores taylor, fisher and snip.")
    reads = bool(score.needs) and ":" not in score.name  # the user's own may do without
    if not calibrated and (reads or stage.repair or stage.solver == "obs"):
        what = f"the score '{score.name}'" if reads or stage.solver == "obs" else "repair"
        raise UsageError(f"{what} reads calibration data: give calibration=, tensors or a DataLoader.")


def _pruned(job: TracedJob) -> tuple[nn.Module, dict[str, Tensor], StageReport]:
    stage, network = job.stage, job.network
    check_stage(stage, bool(job.batches))
    groups = traced_groups(job)
    counter = network.costs
    before = counter.of()
    scores = unit_scores(job, groups) if job.scores is None else job.scores
    groups = [group for group in groups if group.name in scores]
    left = _widths(job, groups, scores, counter)
    whole = [group.name for group in groups if _least(job, group) == group.count]
    if whole and left is not None:
        job.notes.append(
            f"{', '.join(whole)}: left whole, as they have no more units than --round-to {stage.round_to} and "
            f"--min-units {stage.min_units} keep."
        )
    keep = _kept(job, groups, scores, left)
    if all(bool(one.all()) for one in keep.values()):
        raise NothingPrunedError("nothing was pruned: every group keeps all of its units. Ask for a smaller model.")
    with job.timed("cut"):
        small = cut_graph(network, keep)
    errors: dict[str, tuple[float, float]] = {}
    if stage.repair:
        with job.timed("repair"):
            errors = repair(network, small, keep, job.batches, stage.damping, job.progress, job.notes)
    reports = tuple(
        GroupReport(
            group.name,
            group.unit,
            group.count,
            int(keep[group.name].sum()),
            None,
            *errors.get(group.name, (None, None)),
        )
        for group in groups
    )
    after = counter.of({name: int(one.sum()) for name, one in keep.items()})
    _note_coarse(job, job.first or before, after)
    budget = {"first": vars(job.first or before), "before": vars(before), "after": vars(after)}
    settings = {"prune": {**stage.model_dump(mode="json"), "gradient": GRADIENT}}
    return small, keep, StageReport(settings, (), dict(job.seconds), tuple(job.notes), (), reports, budget)


def _note_coarse(job: TracedJob, first: Costs, after: Costs) -> None:
    """Notes it if what is left is far below the target."""
    stage = job.stage
    for option, what in (("params", "parameters"), ("macs", "macs")):
        asked, left = getattr(stage, option), getattr(after, what) / getattr(first, what)
        if asked is not None and left < asked - COARSE:
            job.notes.append(
                f"--{option} {asked:g}: {left:.3f} is left; whole units of groups that all lose the same share don't "
                "come nearer. --allocation global may."
                if stage.allocation == "uniform"
                else f"--{option} {asked:g}: {left:.3f} is left; whole units don't come nearer."
            )


def traced_groups(job: TracedJob) -> list[UnitGroup]:
    """Returns the groups that may give units.

    Raises:
        UsageError: There are none.
    """
    groups = [group for group in job.network.groups if group.unit in job.stage.kinds and group.count > 1]
    if not groups:
        known = sorted({group.unit for group in job.network.groups})
        reasons = "".join(f" {one.name}: {one.reason}." for one in job.network.fixed[:3])
        raise UsageError(
            f"{job.network.architecture} has no units of the kind '{job.stage.unit}' that can be cut; it has "
            f"{', '.join(known) or 'none at all'}.{reasons}"
        )
    groups = chosen_groups(groups, job.stage.include, job.stage.exclude)
    first, last = job.stage.protect_first, job.stage.protect_last
    if first + last >= len(groups):
        raise UsageError(f"protect_first and protect_last leave none of the {len(groups)} groups to prune.")
    return groups[first : len(groups) - last]


def _score(stage: Prune) -> UnitScore:
    return unit_score_named(stage.score or "obs", stage.combine)


def unit_scores(job: TracedJob, groups: Sequence[UnitGroup]) -> dict[str, Tensor]:
    """Returns (units,) float32 by group, without groups that the score says nothing about, which a note names.

    Those are groups that no matrix reads, where the score needs one, and such whose units are all worth the same.

    Raises:
        ScoreError: It says nothing about any group, or can't be computed.
    """
    score = _score(job.stage)
    needs = score.needs if job.batches else Needs.NOTHING
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
        deaf = [one.name for one in groups if all(gradients[reader.layer.name].nothing for reader in one.readers)]
        if len(deaf) == len(groups):
            raise ScoreError(f"the gradients of the loss are zero everywhere, so '{score.name}' says nothing.")
        if deaf:
            job.notes.append(f"{', '.join(deaf)}: left whole, as the loss doesn't depend on what reads them.")
        groups = [group for group in groups if group.name not in deaf]
    found, alike = {}, dict[str, ConstantScoreError]()
    free = mean_free(job.network) if job.stage.solver == "obs" else set()
    with job.timed("score"):
        for number, group in enumerate(groups):
            random = torch.Generator().manual_seed(job.seed * 1_000_003 + number)
            try:
                if job.stage.solver == "obs":
                    found[group.name] = losses_in_rounds(group, statistics, free, job.stage.damping)
                else:
                    inputs = _inputs(group, statistics, gradients)
                    found[group.name] = scored(score, group, UnitStatistics(inputs, random=random))
            except ConstantScoreError as error:
                alike[group.name] = error
    if alike and not found:
        raise next(iter(alike.values()))
    if alike:
        job.notes.append(
            f"{', '.join(alike)}: left whole, as all units are worth the same by the score '{score.name}'."
        )
    return found


def _inputs(
    group: UnitGroup, statistics: Mapping[str, Statistics], gradients: Mapping[str, Gradients]
) -> tuple[Statistics | None, ...]:
    """Returns what is known of what each reader of a group reads."""
    inputs = []
    for reader in group.readers:
        known = statistics.get(reader.layer.reads)
        if known is None and gradients:
            known = Statistics.empty(reader.layer.shape[1], Needs.NOTHING, reader.layer.parameter.device)
        own = gradients.get(reader.layer.name)
        inputs.append(known if known is None or own is None else replace(known, gradients=own))
    return tuple(inputs)


def _least(job: TracedJob, group: UnitGroup) -> int:
    return least_width(group.count, job.stage.min_units, job.stage.round_to)


def _widths(
    job: TracedJob, groups: Sequence[UnitGroup], scores: Mapping[str, Tensor], counter: GraphCosts
) -> dict[str, int] | None:
    """Returns how many units each group keeps; None where a threshold decides."""
    stage = job.stage
    if stage.threshold is not None:
        return None
    if stage.amounts is not None:
        gone = amounts_of(stage.amounts, {one.name: one.count - _least(job, one) for one in groups}, "group of units")
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
    if _least(job, group) == group.count:
        return group.count
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


def _ranked(job: TracedJob, groups: Sequence[UnitGroup], scores: Mapping[str, Tensor], counter: GraphCosts) -> Tensor:
    """Returns (removals,) places of groups: in which order they lose units.

    Scores that are losses go by loss per what a unit costs; others have scales of their own in each group, and go by
    what they are relative to their group's mean.
    """
    stage, dense = job.stage, counter.of()
    measure = "bytes" if stage.memory is not None else "parameters" if stage.params is not None else "macs"
    losses = stage.solver == "obs" or bool(_score(stage).needs & GRADIENTS)
    gains, places = [], []
    for place, group in enumerate(groups):
        values = scores[group.name].double()
        scale = float(values.abs().mean()) or 1.0
        if losses:
            saved = getattr(dense, measure) - getattr(counter.of({group.name: group.count - 1}), measure)
            scale = 1.0 if stage.sparsity is not None else max(float(saved), 1e-9)
        gains.append(values.sort().values[: group.count - _least(job, group)] / scale)
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
