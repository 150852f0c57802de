"""Entropy: how much a unit's activations vary in size, whatever their scale."""

from __future__ import annotations

import torch
from torch import Tensor

from secateur.calibration.statistics import Needs
from secateur.network.unit_group import UnitGroup
from secateur.scores.unit_score import WIDTHS, UnitScore, UnitStatistics, distinct_inputs, need_part


class Entropy(UnitScore):
    """-Σ_b p_b ln p_b in nats, p_b the share of a feature's activations in bin b.

    Luo and Wu 2017, arXiv 1706.05791, eq. 2. Their bins divide the range of the activations; ours are powers of two of
    either sign, which need no range and add up over batches. A mean over the unit's features and the tensors that hold
    it.
    """

    name = "entropy"
    needs = Needs.MOMENTS | Needs.HISTOGRAM
    about = "entropy of the unit's activations"
    fits = WIDTHS

    def score(self, group: UnitGroup, statistics: UnitStatistics) -> Tensor:
        found = []
        for one, index in distinct_inputs(group, statistics, self.name):
            counts = need_part(one.histogram, self.name, "Needs.HISTOGRAM")
            p = counts.float() / max(one.count, 1)
            found.append(torch.special.entr(p).sum(1)[index].mean(1))
        return torch.stack(found).mean(0)
