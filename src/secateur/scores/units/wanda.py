"""Contribution: how large the part of its readers' outputs is that comes from a unit."""

from __future__ import annotations

import torch
from torch import Tensor

from secateur.calibration.statistics import Needs
from secateur.network.unit_group import UnitGroup
from secateur.scores.unit_score import WIDTHS, UnitScore, UnitStatistics, readings


class Wanda(UnitScore):
    """(Σ_j∈S ||W_:j||² E[x_j²])^½ over a unit's columns S, summed over the layers that read it.

    The structured form of Wanda (Sun et al. 2023, arXiv 2306.11695, eq. 1): for a neuron, the norm of its column of
    down_proj times the root mean square of its activation.
    """

    name = "wanda"
    needs = Needs.MOMENTS
    about = "norm of the unit's columns times the size of its activations"
    fits = WIDTHS

    def score(self, group: UnitGroup, statistics: UnitStatistics) -> Tensor:
        found = [
            one.of_units(one.W.square().sum(0) * one.statistics.mean_squares).sqrt()
            for one in readings(group, statistics, self.name)
        ]
        return torch.stack(found).sum(0)
