"""APoZ: how often a unit is active at all."""

from __future__ import annotations

import torch
from torch import Tensor

from secateur.calibration.statistics import Needs
from secateur.network.unit_group import UnitGroup
from secateur.scores.unit_score import WIDTHS, UnitScore, UnitStatistics, distinct_inputs, need_part


class Apoz(UnitScore):
    """The share of a unit's activations that are positive: 1 less the average percentage of zeros.

    Hu et al. 2016, arXiv 1607.03250, eq. 1, where activations come from ReLU. With other activation functions what
    isn't positive is counted as off. A mean over the unit's features and the tensors that hold it.
    """

    name = "apoz"
    needs = Needs.MOMENTS | Needs.ACTIVE
    about = "share of the unit's activations that are positive"
    fits = WIDTHS

    def score(self, group: UnitGroup, statistics: UnitStatistics) -> Tensor:
        found = []
        for one, index in distinct_inputs(group, statistics, self.name):
            active = need_part(one.active, self.name, "Needs.ACTIVE")
            found.append(active[index].double().mean(1).float() / max(one.count, 1))
        return torch.stack(found).mean(0)
