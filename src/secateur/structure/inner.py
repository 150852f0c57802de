"""Neurons and heads: chosen and repaired block by block on the pruned prefix, cut when all are known.

A removed unit's slices are set to zero as soon as it is chosen. That is exactly what cutting it does to the outputs, so
the blocks behind see the smaller model's activations.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from secateur.calibration.runner import BlockRunner
from secateur.calibration.statistics import Needs, Statistics
from secateur.calibration.targets import Moments, output_moments
from secateur.errors import NothingPrunedError, UsageError
from secateur.layer_choice import chosen_groups
from secateur.network.surgery import Cut
from secateur.network.unit_group import Reader, UnitGroup
from secateur.network.units import unit_groups
from secateur.scores.units import scored
from secateur.solvers.removal import elimination, refit
from secateur.structure.choosing import kept_by_score
from secateur.structure.dense import blocks_of, differentiate_loss, on_the_dense_model
from secateur.structure.fitting import adds_plainly, damping_of, moments_of, refit_layer, weighed, weights_of
from secateur.structure.inner_widths import inner_widths, note_widths, step_of
from secateur.structure.job import Job
from secateur.training.reconstruction import reconstruct

ORDER = ("head", "query-head", "neuron")  # in which a block computes them


def choose_inner(job: Job) -> list[Cut]:
    """Chooses, repairs and zeroes neurons and heads; returns what is to be cut."""
    groups = _groups(job)
    if job.stage.gradient == "loss":
        if job.stage.solver == "obs" and any(group.shared is not None for group in groups):
            raise UsageError(
                f"heads that several blocks of {job.network.architecture} lose together go by a score, not in "
                "rounds, so their errors can't be weighed; leave --gradient loss out."
            )
        differentiate_loss(job, [reader.layer for group in groups for reader in group.readers])
    counts = inner_widths(job, groups)
    note_widths(job, groups, counts)
    return _walk(job, groups, counts)


def _groups(job: Job) -> list[UnitGroup]:
    """Returns the groups that may give units, in the order of computation."""
    stage = job.stage
    first, last = stage.protect_first, len(job.network.blocks) - stage.protect_last
    found = [group for kind in ORDER if kind in stage.kinds for group in unit_groups(job.network, kind)]
    groups = [group for group in found if group.block is not None and first <= group.block < last]
    if not groups:
        raise UsageError("--protect-first and --protect-last leave no block to prune.")
    return chosen_groups(groups, stage.include, stage.exclude)


def _shared(job: Job, groups: Sequence[UnitGroup], counts: dict[str, int] | None) -> dict[str, Tensor]:
    """Returns, by the name of what they share, which units stay in groups that lose the same ones.

    They are scored on the dense model, and their scores added up.
    """
    some = [group for group in groups if group.shared is not None]
    if not some:
        return {}
    if counts is None:
        raise UsageError("a --threshold can't choose units that several blocks lose together; give another target.")
    every = [group for kind in {group.unit for group in some} for group in unit_groups(job.network, kind)]
    for name in {group.shared for group in some}:
        if len({counts.get(group.name, group.count) for group in every if group.shared == name}) > 1:
            raise UsageError(
                f"the blocks of {job.network.architecture} share what belongs to a head, so all have to keep as many: "
                "leave --allocation, --protect-first and --protect-last out, or give --uniform."
            )
    if job.stage.solver == "obs":
        job.notes.append("Heads that several blocks lose together go by the score obs at once, not in rounds.")
    total: dict[str, Tensor] = {}
    for group, inputs in on_the_dense_model(job, some, job.score.needs):
        assert group.shared is not None
        scores = scored(job.score, group, job.statistics(group, inputs))
        total[group.shared] = total.get(group.shared, torch.zeros(group.count)) + scores
    return {
        group.shared: kept_by_score(total[group.shared], counts[group.name], None, job, group)
        for group in some
        if group.shared is not None
    }


def _walk(job: Job, groups: Sequence[UnitGroup], counts: dict[str, int] | None) -> list[Cut]:
    """Goes through the blocks, each on the activations that the smaller ones before it leave."""
    if counts is not None and all(counts[group.name] == group.count for group in groups):
        raise NothingPrunedError("nothing was pruned: every group keeps all of its units. Ask for a smaller model.")
    stage, by_block = job.stage, blocks_of(groups)
    needs = job.score.needs | (Needs.GRAM if stage.repair or stage.solver == "obs" else Needs.NOTHING)
    fixed = _shared(job, groups, counts)
    runner = job.runner() if needs or stage.reconstruct else None
    towards_dense = _adds(job) and "neuron" in stage.kinds
    dense = job.runner() if runner is not None and (towards_dense or stage.reconstruct) else None
    last = max(by_block)
    cuts = []
    for block in job.progress.track(range(last + 1), "pruning"):
        some = by_block.get(block, [])
        if dense is not None:
            with job.timed("propagate"):
                dense.advance(lambda: None)
        for kind in ORDER:
            for group in (one for one in some if one.unit == kind):
                cuts.append(_remove(job, group, counts, runner, dense, needs, fixed.get(group.shared or "")))
        if stage.reconstruct and runner is not None and dense is not None and some:
            with job.timed("reconstruct"), runner.differentiable():
                layers = job.network.block_layers(block)
                job.blocks.append(
                    reconstruct(runner, layers, dense.outputs, stage.reconstruct_passes, stage.reconstruct_halves)
                )
        if runner is not None and block < last:
            with job.timed("propagate"):
                runner.advance(lambda: None)
    if all(bool(one.keep.all()) for one in cuts):
        raise NothingPrunedError(f"nothing was pruned: no unit scores below --threshold {stage.threshold}.")
    return cuts


def _remove(
    job: Job,
    group: UnitGroup,
    counts: dict[str, int] | None,
    runner: BlockRunner | None,
    dense: BlockRunner | None,
    needs: Needs,
    fixed: Tensor | None,
) -> Cut:
    """Chooses a group's units, repairs what reads them, and sets what goes to zero.

    Args:
        job: The stage's work.
        group: The group.
        counts: How many units each group keeps; None where the threshold decides.
        runner: Stands before the group's block in the model so far.
        dense: Stands behind it in the dense model, if the repair is to make up for earlier errors.
        needs: What is gathered.
        fixed: (units,) bool where it has been chosen already.
    """
    stage = job.stage
    if counts is not None and counts[group.name] == group.count:
        keep = torch.ones(group.count, dtype=torch.bool)
        job.report(group, keep)
        return Cut(group, keep)
    towards = None
    single = len(group.readers) == 1
    if runner is not None and dense is not None and group.unit == "neuron" and single and _adds(job):
        with job.timed("gather"):
            towards = output_moments(runner, group.readers[0].layer, dense.outputs, lambda: None)
    known = towards is not None and (stage.solver == "obs" or fixed is not None)  # all that is needed
    inputs = job.gather(runner, [group], needs) if runner is not None and not known else {}
    with job.timed("solve"), torch.inference_mode():
        moments = [moments_of(job, reader, inputs) if towards is None else towards for reader in group.readers]
        keep = _chosen(job, group, counts, inputs, moments) if fixed is None else fixed
        errors = [
            _refitted(job, reader, one, keep)
            for reader, one in zip(group.readers, moments, strict=True)
            if stage.repair and one is not None and one.count
        ]
        if errors:
            before, after = (sum(pair) / len(errors) for pair in zip(*errors, strict=True))
            job.report(group, keep, before, after)
        else:
            job.report(group, keep)
        _zero(group, keep)
    return Cut(group, keep)


def _adds(job: Job) -> bool:
    """Whether the repair of neurons can make up for earlier errors."""
    return job.stage.repair and adds_plainly(job.network)


def _refitted(job: Job, reader: Reader, moments: Moments, keep: Tensor) -> tuple[float, float]:
    """Fits a layer anew on the units that stay; returns the relative error before and after."""
    columns = torch.zeros(reader.layer.shape[1], dtype=torch.bool)
    columns[reader.index[keep].flatten()] = True
    return refit_layer(job, reader.layer, moments, columns)


def _chosen(
    job: Job,
    group: UnitGroup,
    counts: dict[str, int] | None,
    inputs: dict[str, Statistics],
    moments: Sequence[Moments | None],
) -> Tensor:
    """Returns (units,) bool: which units stay."""
    if job.stage.solver == "obs" and counts is not None and len(moments) == 1:
        (reader,), (own,) = group.readers, moments
        assert own is not None
        W, b = weights_of(job, reader.layer)
        every = torch.ones(W.shape[1], dtype=torch.bool)
        start = weighed(job, reader.layer, refit(W, b, own, every, damping_of(job)).W if job.stage.repair else W)
        G = own.G if b is None else own.centred().G
        remove = group.count - counts[group.name]
        path = elimination(start, G, reader.index, remove, damping_of(job))
        keep = torch.ones(group.count, dtype=torch.bool)
        keep[path.order] = False
        return keep
    scores = scored(job.score, group, job.statistics(group, inputs))
    if counts is not None:
        return kept_by_score(scores, counts[group.name], None, job, group)
    left, step = int(kept_by_score(scores, None, job.stage.threshold, job, group).sum()), step_of(job, [group])
    return kept_by_score(scores, min(group.count, -(-left // step) * step), None, job, group)


def _zero(group: UnitGroup, keep: Tensor) -> None:
    """Sets the slices of the units that go to zero."""
    gone = ~keep
    for part in group.slices:
        tensor = group.tensor(part.name)
        tensor.index_fill_(part.axis, part.index[gone].flatten().to(tensor.device), 0.0)
