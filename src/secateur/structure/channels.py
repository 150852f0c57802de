"""Residual channels: one set for the whole model, then everything is fitted anew to what the dense model gives."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from math import lcm, prod
from typing import Any

import torch
from torch import Tensor, nn

from secateur.allocation.widths import Place, even_widths
from secateur.calibration.runner import BlockRunner
from secateur.calibration.statistics import GRADIENTS, INPUTS, Needs, Statistics
from secateur.calibration.targets import MomentSums
from secateur.errors import UsageError
from secateur.evaluation.costs import costs, linear_names, used
from secateur.network.inner_units import head_dim
from secateur.network.network import Layer, Network
from secateur.network.surgery import Cut
from secateur.network.unit_group import UnitGroup
from secateur.network.units import unit_groups
from secateur.network.whole_units import INNER_COLUMNS
from secateur.scores.units import scored
from secateur.structure.budget import budget_of
from secateur.structure.choosing import kept_by_score
from secateur.structure.fitting import refit_layer
from secateur.structure.inner_widths import ALIGNED
from secateur.structure.job import Job


def choose_channels(job: Job) -> list[Cut]:
    """Returns which channels stay; with them heads, where the attention is as wide as the hidden states."""
    (group,) = unit_groups(job.network, "channel")
    heads = unit_groups(job.network, "head") if job.network.family.tied_width else []
    inputs = _statistics(job, [group, *heads])
    scores = scored(job.score, group, job.statistics(group, inputs))
    step = _step(job)
    if job.stage.threshold is not None:
        left = int(kept_by_score(scores, None, job.stage.threshold, job, group).sum()) // step * step
        if left == 0:
            raise UsageError(f"--threshold {job.stage.threshold} leaves fewer than the {step} channels of one head.")
    else:
        left = _width(job, group, heads, step)
    cuts = [Cut(group, kept_by_score(scores, left, None, job, group))]
    for one in heads:
        values = scored(job.score, one, job.statistics(one, inputs))
        cuts.append(Cut(one, kept_by_score(values, left // head_dim(job.network), None, job, one)))
    for made in cuts:
        job.report(made.group, made.keep)
    if job.stage.remove is not None and group.count - left != job.stage.remove:
        along = f", and with them {heads[0].count - left // head_dim(job.network)} heads of each layer" if heads else ""
        job.notes.append(
            f"{group.count - left} channels went and not {job.stage.remove}, as {step} of them go together{along}."
        )
    return cuts


def _step(job: Job) -> int:
    """Returns what the number of channels is a multiple of."""
    if not job.network.family.tied_width:
        experts = any(layer.expert is not None for layer in job.network.layers())
        return lcm(job.stage.round_to, ALIGNED) if experts else job.stage.round_to
    width = head_dim(job.network)
    if job.stage.round_to > 1 and width % job.stage.round_to:
        raise UsageError(
            f"channels of this model go by whole heads of {width}; --round-to {job.stage.round_to} doesn't."
        )
    return width


def _width(job: Job, group: UnitGroup, heads: Sequence[UnitGroup], step: int) -> int:
    """Returns how many channels stay: the most that the target allows, a multiple of `step`."""
    stage = job.stage
    least = max(step, stage.min_units)
    if stage.remove is not None or stage.sparsity is not None:
        gone = stage.remove if stage.remove is not None else round(group.count * (stage.sparsity or 0))
        left = (group.count - gone) // step * step
        if left < least:
            raise UsageError(
                f"removing {gone} of {group.count} channels leaves {max(left, 0)}, and at least {least} have to stay."
            )
        return left
    budget, each = budget_of(job, [group, *heads])
    if stage.latency is not None:
        cost = float(each[0].mean()) + sum(float(one.mean()) for one in each[1:]) / head_dim(job.network)
        return even_widths([Place(group.name, group.count, cost, least)], budget, step)[0]
    for width in range(group.count // step * step, least - 1, -step):
        left_over = _cost(job, group, heads, width)
        if width < group.count and left_over <= budget.limit:
            return width
    raise UsageError(
        f"{budget.words} can't be met by removing channels: {budget.limit:,.0f} {budget.unit} were asked for, and "
        f"{_cost(job, group, heads, least):,.0f} is the least that can be reached."
    )


def _cost(job: Job, group: UnitGroup, heads: Sequence[UnitGroup], width: int) -> float:
    """Returns what a model with so many channels costs, in the target's measure.

    Weights with channels on one axis and channels or heads on the other shrink with both.
    """
    network, length = job.network, job.first.length
    lost: dict[str, dict[int, int]] = defaultdict(lambda: defaultdict(int))
    for one in (group, *heads):
        left = width if one is group else width // head_dim(network)
        for part in one.slices:
            lost[part.name][part.axis] += part.index.shape[1] * (one.count - left)
    macs = job.stage.macs is not None
    linear = linear_names(network) if macs else set()
    total: float = 0.0
    for name, parameter in network.model.named_parameters():
        if not macs or name in linear:
            left_of_it = prod(length - lost[name][axis] for axis, length in enumerate(parameter.shape))
            total += left_of_it * (used(network, name) if macs else 1.0)
    if macs:
        attention: float = costs(network, length).macs - sum(
            used(network, name) * network.model.get_parameter(name).numel() for name in linear
        )
        return total + attention * (width / group.count if heads else 1.0)
    size: int = network.model.dtype.itemsize if job.stage.memory is not None else 1
    return total * size


def _statistics(job: Job, groups: Sequence[UnitGroup]) -> dict[str, Statistics]:
    """Returns moments of every reader's input in the dense model, by the input's name."""
    needs = job.score.needs
    if needs & GRADIENTS:
        raise UsageError(f"--score {job.score.name} isn't for channels; take l2, wanda or activation.")
    if not needs & INPUTS:
        return {}
    runner = job.runner()
    names = {reader.layer.name for group in groups for reader in group.readers}
    found: dict[str, Statistics] = {}
    for block in job.progress.track(range(len(job.network.blocks)), "looking at the dense model"):
        readers: dict[str, tuple[Layer, Needs]] = {}
        for layer in job.network.block_layers(block):  # in the order of computation: gathering ends with the last
            if layer.name in names:
                readers.setdefault(layer.reads, (layer, needs))
        with job.timed("gather"):
            found |= runner.gather(readers, lambda: None)
        if block < len(job.network.blocks) - 1:
            with job.timed("propagate"):
                runner.advance(lambda: None)
    return found


def repair_channels(job: Job, dense: Network, small: Network, keep: Tensor) -> None:
    """Fits every layer of the cut model that reads or writes channels to what the dense model gives, block by block.

    Args:
        job: The stage's work.
        dense: The model before the cut; it isn't changed.
        small: The cut model, changed in place.
        keep: (hidden,) bool: the channels that stayed.
    """
    runners = job.runner(dense), job.runner(small)
    channels = keep.nonzero().flatten()
    for block in job.progress.track(range(len(small.blocks)), "repairing"):
        with job.timed("repair"):
            for writes in (False, True):
                pairs = [
                    (big, little)
                    for big, little, projection in zip(
                        dense.block_layers(block), small.block_layers(block), small.projections(block), strict=True
                    )
                    if (projection.columns in INNER_COLUMNS and "residual" in projection.rows) == writes
                    and projection.columns != "position"
                    and big.module is not None
                    and big.expert is None
                    and big.shape[0] == (little.shape[0] if not writes else len(keep))
                ]
                _match(job, runners, pairs, channels if writes else None)
        if block < len(small.blocks) - 1:
            for runner in runners:
                runner.advance(lambda: None)


def _match(
    job: Job, runners: tuple[BlockRunner, BlockRunner], pairs: Sequence[tuple[Layer, Layer]], rows: Tensor | None
) -> None:
    """Fits layers of the cut model to give what the dense model's give, on the inputs that they get.

    Args:
        job: The stage's work.
        runners: Of the dense and the cut model, before the same block.
        pairs: The dense model's layers and the cut model's.
        rows: The dense layer's outputs that the cut one has; None for all.
    """
    if not pairs:
        return
    dense, small = runners
    sums = [MomentSums(little, small.network.device) for _, little in pairs]
    outputs: dict[int, Tensor] = {}
    reads: dict[int, Tensor] = {}
    handles = []
    for number, (big, little) in enumerate(pairs):

        def give(_: nn.Module, args: tuple[Any, ...], output: Tensor, number: int = number) -> None:
            outputs[number] = output.flatten(0, -2)

        def read(_: nn.Module, args: tuple[Any, ...], number: int = number) -> None:
            reads[number] = args[0].flatten(0, -2)

        assert big.module is not None
        assert little.module is not None
        handles += [big.module.register_forward_hook(give), little.module.register_forward_pre_hook(read)]
    try:
        with dense.ready(), small.ready():
            for batch in range(len(small.hidden)):
                dense.forward(batch)
                small.forward(batch)
                for number, one in enumerate(sums):
                    one.add(reads[number], outputs[number] if rows is None else outputs[number][:, rows], small.compute)
    finally:
        for handle in handles:
            handle.remove()
    for (_, little), one in zip(pairs, sums, strict=True):
        refit_layer(job, little, one.total(job.team), torch.ones(little.shape[1], dtype=torch.bool))
