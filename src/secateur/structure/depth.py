"""Whole layers and halves of layers: scored on the dense model, the least important ones go."""

from __future__ import annotations

import torch
from torch import Tensor

from secateur.calibration.influence import block_influence, leave_one_out
from secateur.errors import NothingPrunedError, UsageError
from secateur.network.surgery import Cut
from secateur.network.units import Halves, UnitGroup, unit_groups
from secateur.scores.units import scored
from secateur.structure.budget import budget_of
from secateur.structure.inner import kept_by_score
from secateur.structure.job import Job

JUDGED = 2048  # tokens that leave-one-out is judged on


def choose_depth(job: Job) -> list[Cut]:
    """Returns which layers, or which halves of layers, stay."""
    cuts = []
    for group in unit_groups(job.network, job.stage.unit):
        scores = _scores(job, group)
        scores[_protected(job, group)] = torch.inf
        keep = _kept(job, group, scores)
        if bool(keep.all()):
            raise NothingPrunedError("nothing was pruned: the target keeps every unit. Ask for more.")
        job.report(group, keep)
        cuts.append(Cut(group, keep))
    return cuts


def _scores(job: Job, group: UnitGroup) -> Tensor:
    name = job.score.name
    influence: Tensor | None = None
    with job.timed("score"):
        if name == "block-influence":
            runner = job.runner()
            bar = job.progress.bar("scoring layers", len(job.network.blocks) * len(runner.hidden))
            influence = block_influence(job.network, group, runner, bar)
        elif name == "loo-kl":
            if job.windows is None:
                raise UsageError("--score loo-kl needs calibration windows; give --calibration.")
            windows = max(1, JUDGED // job.windows.length)
            influence = leave_one_out(job.network, group, job.windows.part(0, windows), job.progress)
        return scored(job.score, group, job.statistics(group, {}, influence)).clone()


def _protected(job: Job, group: UnitGroup) -> Tensor:
    """Returns (units,) bool: the units in blocks that keep everything."""
    blocks = group.blocks if isinstance(group, Halves) else range(group.count)
    last = len(job.network.blocks) - job.stage.protect_last
    return torch.tensor([not job.stage.protect_first <= block < last for block in blocks])


def _kept(job: Job, group: UnitGroup, scores: Tensor) -> Tensor:
    """Returns (units,) bool: which units stay under the stage's target."""
    stage = job.stage
    if stage.threshold is not None:
        return kept_by_score(scores, None, stage.threshold, job, group)
    if stage.sparsity is not None:
        return kept_by_score(scores, _left(job, group, scores, round(group.count * stage.sparsity)), None, job, group)
    if stage.remove is not None:
        return kept_by_score(scores, _left(job, group, scores, stage.remove), None, job, group)
    budget, (each,) = budget_of(job, [group])
    keep = torch.ones(group.count, dtype=torch.bool)
    now = budget.now
    for unit in scores.argsort(stable=True).tolist():
        if now <= budget.limit:
            break
        if int(keep.sum()) == max(1, stage.min_units) or scores[unit] == torch.inf:
            raise UsageError(
                f"{budget.words} can't be met by removing units of the kind '{group.unit}': {budget.limit:,.0f} "
                f"{budget.unit} were asked for, and {now:,.0f} is the least that can be reached."
            )
        keep[unit] = False
        now -= float(each[unit])
    return keep


def _left(job: Job, group: UnitGroup, scores: Tensor, remove: int) -> int:
    most = min(group.count - max(1, job.stage.min_units), int((scores != torch.inf).sum()))
    if remove > most:
        raise UsageError(
            f"{remove} of the {group.count} units of the kind '{group.unit}' can't be removed: {most} is the most "
            "(--min-units, --protect-first and --protect-last keep the others)."
        )
    return group.count - remove
