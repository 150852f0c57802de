"""Scores a traced network's units by optimal brain surgeon in rounds, over all layers that read them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from secateur.calibration.statistics import Statistics
from secateur.linear_algebra import DAMPING
from secateur.network.unit_group import UnitGroup
from secateur.scores.unit_score import checked
from secateur.solvers.removal import Consumer, joint_elimination


def losses_in_rounds(
    group: UnitGroup, statistics: Mapping[str, Statistics], free: set[str], damping: float | None
) -> Tensor:
    """Returns (units,): by how much a unit's going raises its readers' errors when its turn comes.

    Errors are relative to the size of what a reader gives, so that those of all readers, and of all groups, can be
    added and compared. About the mean, where something behind the reader makes it right.

    Args:
        group: With readers.
        statistics: Of what layers read, by their `reads`, with Gram matrices.
        free: Names of readers whose mean output is made right.
        damping: Relative to each Gram matrix's mean diagonal; None takes the usual.

    Raises:
        ScoreError: All units are alike.
    """
    consumers = []
    for reader in group.readers:
        W, known = reader.layer.matrix().float(), statistics[reader.layer.reads]
        G = known.G / max(known.count, 1)
        if reader.layer.name in free:
            G = G - torch.outer(known.mean, known.mean)
        energy = float(((W @ G) * W).sum(dtype=torch.float64))
        if energy > 0:
            consumers.append(Consumer(W, G, reader.index.to(W.device), 1 / energy))
    losses = torch.zeros(group.count)
    if consumers:
        path = joint_elimination(consumers, group.count - 1, DAMPING if damping is None else damping)
        losses[:] = 2 * float(path.losses[-1])  # of the last one, which stays
        losses[path.order] = path.losses.float()
    return checked(losses, group, "obs")
