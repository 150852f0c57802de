"""RIA: relative importance and activations, of all weights that read a unit."""

from __future__ import annotations

import torch
from torch import Tensor

from secateur.calibration.statistics import Needs
from secateur.network.unit_group import UnitGroup
from secateur.scores.ria import Ria as RiaOfWeights
from secateur.scores.unit_score import WIDTHS, UnitScore, UnitStatistics, readings


class Ria(UnitScore):
    """Σ (|W_ij| / Σ_k |W_kj| + |W_ij| / Σ_k |W_ik|) ||X_j||^½ over a unit's columns j and the layers that read it.

    Zhang et al. 2024 (ICLR), eq. 4, a = 0.5. The first term adds up to 1 for every column.
    """

    name = "ria"
    needs = Needs.MOMENTS
    about = "relative importance of the weights that read the unit, times the root of its norm"
    fits = WIDTHS

    def score(self, group: UnitGroup, statistics: UnitStatistics) -> Tensor:
        found = [
            one.of_units(RiaOfWeights().weights(one.W, one.statistics, statistics.random).sum(0))
            for one in readings(group, statistics, self.name)
        ]
        return torch.stack(found).sum(0)
