"""Groups of units solved at several numbers each, for a search to choose from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from secateur.calibration.statistics import Needs
from secateur.errors import UsageError
from secateur.network.unit_group import UnitGroup
from secateur.solvers.removal import elimination, refit
from secateur.structure.dense import differentiate_loss, on_the_dense_model
from secateur.structure.fitting import damping_of, moments_of, weighed, weights_of
from secateur.structure.inner_widths import PLAN_ROUNDS
from secateur.structure.job import Job


@dataclass(frozen=True)
class UnitLevel:
    """A group of units at one of several levels.

    Attributes:
        W: (out, in) float32: the reader's weights, fitted anew on what stays, zero where units go.
        bias: (out,) float32, or None.
        loss: By how much that raises the squared error of the reader's outputs, weighed as the stage says.
    """

    W: Tensor
    bias: Tensor | None
    loss: float


def solve_unit_levels(
    job: Job,
    groups: Sequence[UnitGroup],
    levels: Mapping[str, Sequence[int]],
    take: Callable[[UnitGroup, int, UnitLevel], None],
) -> None:
    """Solves groups at several numbers of removed units each, on the dense model, which stays as it is.

    Args:
        job: The work; its stage says how readers are fitted, and whether errors are weighed by the next-token loss.
        groups: Groups with one reader each, in the order of computation.
        levels: Numbers of units that go, by group; all of them stand for a reader that gives nothing.
        take: Is called with the group, the number, and what came of it.

    Raises:
        UsageError: Units of a group have several readers.
    """
    if any(len(group.readers) != 1 for group in groups):
        raise UsageError("levels are solved for units that one layer reads, not for those of experts.")
    if job.stage.gradient == "loss":
        differentiate_loss(job, [reader.layer for group in groups for reader in group.readers])
    for group, inputs in on_the_dense_model(job, groups, Needs.GRAM):
        (reader,) = group.readers
        moments = moments_of(job, reader, inputs)
        if moments is None or not levels.get(group.name):
            continue
        W, b = weights_of(job, reader.layer)
        every = torch.ones(W.shape[1], dtype=torch.bool)
        with job.timed("solve"), torch.inference_mode():
            start = weighed(job, reader.layer, refit(W, b, moments, every, damping_of(job)).W)
            G = moments.G if b is None else moments.centred().G
            most = max((amount for amount in levels[group.name] if amount < group.count), default=0)
            path = elimination(start, G, reader.index, most, damping_of(job), PLAN_ROUNDS)
            for amount in levels[group.name]:
                if amount == group.count:
                    nothing = None if b is None else torch.zeros_like(b)
                    take(group, amount, UnitLevel(torch.zeros_like(W), nothing, path.energy))
                    continue
                columns = every.clone()
                columns[reader.index[path.order[:amount]].flatten()] = False
                done = refit(W, b, moments, columns, damping_of(job))
                take(group, amount, UnitLevel(done.W, done.bias, float(path.losses[:amount].sum())))
