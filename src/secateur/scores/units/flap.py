"""FLAP: how much of a unit's contribution a bias can't make up for."""

from __future__ import annotations

import torch
from torch import Tensor

from secateur.calibration.statistics import Needs
from secateur.network.unit_group import UnitGroup
from secateur.scores.unit_score import WIDTHS, UnitScore, UnitStatistics, readings


class Flap(UnitScore):
    """Σ_j∈S Var(x_j) ||W_:j||², the weighted input fluctuation, over the unit's columns and the layers that read it.

    An et al. 2024, arXiv 2312.11983, section 3.2; with the variance of the sample.
    """

    name = "flap"
    needs = Needs.MOMENTS
    about = "variance of the unit's activations times its columns' squared norm"
    fits = WIDTHS

    def score(self, group: UnitGroup, statistics: UnitStatistics) -> Tensor:
        found = []
        for one in readings(group, statistics, self.name):
            count = one.statistics.count
            variance = one.statistics.variance * (count / max(count - 1, 1))
            found.append(one.of_units(variance * one.W.square().sum(0)))
        return torch.stack(found).sum(0)
