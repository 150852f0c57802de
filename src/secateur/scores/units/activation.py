"""How large a unit's activations are, whatever reads them."""

from __future__ import annotations

import torch
from torch import Tensor

from secateur.calibration.statistics import Needs
from secateur.network.unit_group import UnitGroup
from secateur.scores.unit_score import WIDTHS, UnitScore, UnitStatistics, distinct_inputs, need_part


class Activation(UnitScore):
    """(mean over a unit's features j of E[x_j²])^½, summed over the tensors that hold the unit.

    After Minitron (Muralidharan et al. 2024, arXiv 2407.14679, section 2.2), which takes the L2 norm over samples of
    the mean over tokens. A channel is held by the output of every norm that linear layers read.
    """

    name = "activation"
    needs = Needs.MOMENTS
    about = "root mean square of the unit's activations"
    fits = WIDTHS

    def score(self, group: UnitGroup, statistics: UnitStatistics) -> Tensor:
        inputs = distinct_inputs(group, statistics, self.name)
        return torch.stack([one.mean_squares[index].mean(1).sqrt() for one, index in inputs]).sum(0)


class MeanActivation(UnitScore):
    """mean over a unit's features j of E|x_j|, summed over the tensors that hold the unit.

    The mean absolute activation, as in Minitron (Muralidharan et al. 2024, arXiv 2407.14679, section 2.2). Rare large
    activations weigh less than in `activation`.
    """

    name = "mean_activation"
    needs = Needs.MOMENTS | Needs.SIZES
    about = "mean |x| of the unit's activations"
    fits = WIDTHS

    def score(self, group: UnitGroup, statistics: UnitStatistics) -> Tensor:
        found = []
        for one, index in distinct_inputs(group, statistics, self.name):
            sizes = need_part(one.sizes, self.name, "Needs.SIZES")
            found.append((sizes[index].mean(1) / max(one.count, 1)).float())
        return torch.stack(found).sum(0)
