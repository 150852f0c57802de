"""Experts: the same number goes from every block, the least useful ones by what they add (REAP)."""

from __future__ import annotations

from collections.abc import Sequence

from secateur.allocation.widths import Place, even_widths
from secateur.calibration.experts import ExpertUsage
from secateur.errors import NothingPrunedError, UsageError
from secateur.network.surgery import Cut
from secateur.network.unit_group import UnitGroup
from secateur.network.units import unit_groups
from secateur.scores.units import scored
from secateur.structure.budget import budget_of
from secateur.structure.choosing import kept_by_score
from secateur.structure.job import Job


def choose_experts(job: Job) -> list[Cut]:
    """Returns which experts stay in each block."""
    groups = unit_groups(job.network, "expert")
    least = max(job.stage.min_units, job.network.dimension("experts_per_token") or 1)
    width = _width(job, groups, least)
    usage = _usage(job, groups) if job.score.name == "reap" else {}
    cuts = []
    for group in groups:
        statistics = job.statistics(group, {}, usage=usage.get(group.name))
        scores = scored(job.score, group, statistics)
        keep = kept_by_score(scores, width, None, job, group)
        if unused := int((usage[group.name].count == 0).sum()) if usage else 0:
            job.notes.append(f"{group.name}: {unused} experts saw no calibration token.")
        job.report(group, keep)
        cuts.append(Cut(group, keep))
    return cuts


def _width(job: Job, groups: Sequence[UnitGroup], least: int) -> int:
    """Returns how many experts every block keeps."""
    stage, count = job.stage, groups[0].count
    if stage.threshold is not None:
        raise UsageError("a --threshold leaves other numbers of experts in other blocks, which no config can say.")
    if stage.macs is not None or stage.latency is not None:
        raise UsageError("each token is sent to as many experts as before, so removing some saves parameters only.")
    if stage.remove is not None or stage.sparsity is not None:
        left = count - (stage.remove if stage.remove is not None else round(count * (stage.sparsity or 0)))
    else:
        budget, each = budget_of(job, groups)
        places = [
            Place(group.name, group.count, float(cost.double().mean()), least)
            for group, cost in zip(groups, each, strict=True)
        ]
        left = even_widths(places, budget, stage.round_to)[0]
    if left < least:
        raise UsageError(
            f"{max(left, 0)} of {count} experts would stay in each block; at least {least} have to, as "
            f"many as a token is sent to (or --min-units)."
        )
    if left == count:
        raise NothingPrunedError("nothing was pruned: every block keeps all of its experts. Ask for a smaller model.")
    return left


def _usage(job: Job, groups: Sequence[UnitGroup]) -> dict[str, ExpertUsage]:
    """Returns what each block's experts add in the dense model, by the group's name."""
    runner = job.runner()
    found: dict[str, ExpertUsage] = {}
    names = {group.block: group.name for group in groups if group.block is not None}
    for block in job.progress.track(range(max(names) + 1), "looking at the experts"):
        if block in names:
            with job.timed("gather"):
                found[names[block]] = runner.expert_usage(lambda: None)
        if block < max(names):
            with job.timed("propagate"):
                runner.advance(lambda: None)
    return found
