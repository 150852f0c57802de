"""Removes units of any network whose structure was found by tracing it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from secateur.calibration.readings import gather, gather_gradients
from secateur.calibration.statistics import GRADIENTS, INPUTS, Gradients, Needs, Statistics
from secateur.errors import ConstantScoreError, NothingPrunedError, ScoreError, UsageError
from secateur.evaluation.costs import Costs
from secateur.network.graph.behind import mean_free
from secateur.network.graph.network import cut_graph
from secateur.network.graph.tracing import evaluating
from secateur.network.unit_group import UnitGroup
from secateur.recipe import TRACED_UNITS, Prune
from secateur.result import GroupReport, StageReport
from secateur.scores.units import UnitStatistics, check_fit, scored
from secateur.structure.traced_job import TracedJob, score_of, traced_groups
from secateur.structure.traced_obs import losses_in_rounds
from secateur.structure.traced_repair import repair
from secateur.structure.traced_widths import kept_of, least_of, widths_of

GRADIENT = "the loss on the calibration data"  # what gradient scores differentiate, for the report
WEIGHTS_TRAINED = (
    "single weights of networks other than language models are pruned while they train, by secateur.TrainingPruner. "
    "Whole units go in one pass: --unit filter or another kind, a list of which inspect --units gives."
)
COARSE = 0.02  # more below the target than that is worth a note


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
    score = score_of(stage)
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
    left = widths_of(job, groups, scores, counter)
    whole = [group.name for group in groups if least_of(job, group) == group.count]
    if whole and left is not None:
        job.notes.append(
            f"{', '.join(whole)}: left whole, as they have no more units than --round-to {stage.round_to} and "
            f"--min-units {stage.min_units} keep."
        )
    keep = kept_of(job, groups, scores, left)
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


def unit_scores(job: TracedJob, groups: Sequence[UnitGroup]) -> dict[str, Tensor]:
    """Returns (units,) float32 by group, without groups that the score says nothing about, which a note names.

    Those are groups that no matrix reads, where the score needs one, and such whose units are all worth the same.

    Raises:
        ScoreError: It says nothing about any group, or can't be computed.
    """
    score = score_of(job.stage)
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
