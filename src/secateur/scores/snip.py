"""SNIP: connection sensitivity, the change of the mean loss when a weight goes."""

import torch
from torch import Tensor

from secateur.calibration.statistics import Needs, Statistics
from secateur.scores.base import Score, need_gradients


class Snip(Score):
    """|w E[g]| (Lee et al. 2019, arXiv 1810.02340, eq. 5, without the sum that norms it, which ranks the same)."""

    name = "snip"
    needs = Needs.GRADIENT
    about = "|w times its mean gradient|"

    def weights(self, W: Tensor, statistics: Statistics | None, random: torch.Generator) -> Tensor:
        gradients = need_gradients(statistics, self.name)
        assert gradients.total is not None
        return (W * gradients.total / gradients.count).abs()
