"""How far a unit is from what the others have in common."""

from __future__ import annotations

import torch
from torch import Tensor

from secateur.errors import ScoreError
from secateur.network.unit_group import UnitGroup
from secateur.scores.unit_score import UnitScore, UnitStatistics

ROWS = 1024  # units that are held against all others at a time


class Fpgm(UnitScore):
    """Σ_j ||F_i - F_j||₂ over the units j, where F_i are the weights that make unit i, summed over the coupled tensors.

    Filter pruning via geometric median (He et al. 2019, arXiv 1811.00250, eq. 8): the filters with the smallest sum of
    distances are closest to the geometric median, and the others can stand for them best. Sizes don't matter here.
    """

    name = "fpgm"
    about = "sum of the distances of the unit's weights to those of the others (geometric median)"
    fits = frozenset({"filter", "neuron", "hidden"})

    def score(self, group: UnitGroup, statistics: UnitStatistics) -> Tensor:
        if group.count == 2:
            raise ScoreError(
                f"the score 'fpgm' of {group.name}: each of two units is as far from the other; take another score."
            )
        with group.network.resident(group.block):
            made = [group.vectors(part) for part in group.produces if group.tensor(part.name).ndim > 1]
        return torch.stack([_distances(F) for F in made]).sum(0)


def _distances(F: Tensor) -> Tensor:
    return torch.cat([torch.cdist(some, F).sum(1) for some in F.split(ROWS)])
