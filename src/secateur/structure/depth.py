"""Whole layers and halves of layers: scored on the dense model, the least important ones go.

With the solver `greedy` they are scored again after each removal (Song et al. 2024, arXiv 2402.09025, algorithm 1).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice

import torch
from torch import Tensor

from secateur.calibration.influence import block_influence, leave_one_out
from secateur.errors import NothingPrunedError, UsageError
from secateur.layer_choice import amounts_of
from secateur.network.surgery import Cut
from secateur.network.unit_group import Halves, UnitGroup
from secateur.network.units import unit_groups
from secateur.scores.units import scored
from secateur.structure.budget import budget_of
from secateur.structure.choosing import kept_by_score
from secateur.structure.job import Job

JUDGED = 2048  # tokens that leave-one-out is judged on


def choose_depth(job: Job) -> list[Cut]:
    """Returns which layers, or which halves of layers, stay."""
    cuts = []
    for group in unit_groups(job.network, job.stage.unit):
        keep = _kept(job, group)
        if bool(keep.all()):
            raise NothingPrunedError("nothing was pruned: the target keeps every unit. Ask for a smaller model.")
        job.report(group, keep)
        cuts.append(Cut(group, keep))
        _note_shallow_encoder(job, group, keep)
    return cuts


def _note_shallow_encoder(job: Job, group: UnitGroup, keep: Tensor) -> None:
    """Notes that transformers' cache of T5 counts the encoder's layers."""
    if job.network.family.objective != "seq2seq" or group.unit != "layer" or len(job.network.ranges) == 1:
        return
    encoder, decoder = (int(keep[list(blocks)].sum()) for blocks in job.network.ranges)
    if encoder < decoder:
        job.notes.append(
            f"{encoder} layers of the encoder and {decoder} of the decoder are left: some versions of transformers "
            "generate from a decoder that is the deeper one only with use_cache=False."
        )


def _scores(job: Job, group: UnitGroup, gone: Sequence[int] = ()) -> Tensor:
    """Returns (units,) float32; infinite for units that are protected or gone."""
    name = job.score.name
    influence: Tensor | None = None
    with job.timed("score"):
        if name == "block-influence":
            runner = job.runner()
            bar = job.progress.bar("scoring layers", len(job.network.blocks) * len(runner.hidden))
            influence = block_influence(job.network, group, runner, bar, gone)
        elif name == "loo-kl":
            if job.windows is None:
                raise UsageError("--score loo-kl needs calibration windows; give --calibration.")
            some = job.windows.part(0, max(1, JUDGED // job.windows.length))
            influence = leave_one_out(job.network, group, some, job.progress, job.calibration.compute, gone)
        scores = scored(job.score, group, job.statistics(group, {}, influence)).clone()
    scores[list(gone)] = torch.inf
    scores[_protected(job, group)] = torch.inf
    return scores


def _protected(job: Job, group: UnitGroup) -> Tensor:
    """Returns (units,) bool: the units in blocks that keep everything."""
    last = len(job.network.blocks) - job.stage.protect_last
    return torch.tensor([not job.stage.protect_first <= block < last for block in _blocks(group)])


def _blocks(group: UnitGroup) -> Sequence[int]:
    """Returns the block of each unit."""
    return group.blocks if isinstance(group, Halves) else range(group.count)


def _order(job: Job, group: UnitGroup) -> Iterator[int]:
    """Yields units in the order in which they go."""
    if job.stage.solver == "greedy":
        gone: list[int] = []
        while bool((scores := _scores(job, group, gone)).isfinite().any()):
            gone.append(int(scores.argmin()))
            yield gone[-1]
    else:
        scores = _scores(job, group)
        yield from scores.argsort(stable=True)[: int(scores.isfinite().sum())].tolist()


def _kept(job: Job, group: UnitGroup) -> Tensor:
    """Returns (units,) bool: which units stay under the stage's target."""
    stage = job.stage
    if stage.threshold is not None:
        return kept_by_score(_scores(job, group), None, stage.threshold, job, group)
    keep = torch.ones(group.count, dtype=torch.bool)
    if stage.amounts is not None:
        names = [job.network.block_name(block) for block in _blocks(group)]
        gone = amounts_of(stage.amounts, dict.fromkeys(names, 1), f"block with a unit of the kind '{group.unit}'")
        return torch.tensor([not gone[name] for name in names])
    if stage.remove is not None or stage.sparsity is not None:
        number = stage.remove if stage.remove is not None else round(group.count * (stage.sparsity or 0))
        _check_number(job, group, number)
        keep[list(islice(_order(job, group), number))] = False
        return keep
    budget, (each,) = budget_of(job, [group])
    now, order = budget.now, _order(job, group)
    while now > budget.limit:
        last = int(keep.sum()) == max(1, stage.min_units)
        unit = -1 if last else next(order, -1)
        if unit < 0:
            raise UsageError(
                f"{budget.words} can't be met by removing units of the kind '{group.unit}': "
                f"{budget.text(budget.limit)} {budget.unit} were asked for, and {budget.text(now)} is the least that "
                "can be reached."
            )
        keep[unit] = False
        now -= float(each[unit])
    return keep


def _check_number(job: Job, group: UnitGroup, remove: int) -> None:
    most = min(group.count - max(1, job.stage.min_units), int((~_protected(job, group)).sum()))
    if remove > most:
        stage = job.stage
        given = {
            "min-units": stage.min_units > 1,
            "protect-first": stage.protect_first,
            "protect-last": stage.protect_last,
        }
        why = ", ".join(f"--{name}" for name, is_given in given.items() if is_given)
        raise UsageError(
            f"{remove} of the {group.count} units of the kind '{group.unit}' can't be removed: {most} is the most"
            f"{f' ({why})' if why else ''}."
        )
