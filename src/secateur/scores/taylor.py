"""First-order Taylor: how much the loss moves, batch by batch, when a weight goes."""

import torch
from torch import Tensor

from secateur.calibration.statistics import Needs, Statistics
from secateur.scores.base import Score, need_gradients


class Taylor(Score):
    """|w| E|g|, the mean over batches of |w g| (Molchanov et al. 2017, arXiv 1611.06440, eq. 7)."""

    name = "taylor"
    needs = Needs.GRADIENT_SIZE
    about = "mean |w times its gradient| over batches, first order"

    def weights(self, W: Tensor, statistics: Statistics | None, random: torch.Generator) -> Tensor:
        gradients = need_gradients(statistics, self.name)
        assert gradients.sizes is not None
        return W.abs() * gradients.sizes / gradients.count
