"""Empirical Fisher: the second-order estimate of what a weight's removal costs."""

import torch
from torch import Tensor

from secateur.calibration.statistics import Needs, Statistics
from secateur.scores.base import Score, need_gradients


class Fisher(Score):
    """½ w² E[g²] (Theis et al. 2018, arXiv 1801.05787, section 2; the diagonal of the empirical Fisher matrix)."""

    name = "fisher"
    needs = Needs.GRADIENT_SQUARE
    about = "half of w² times the mean squared gradient, second order"

    def weights(self, W: Tensor, statistics: Statistics | None, random: torch.Generator) -> Tensor:
        gradients = need_gradients(statistics, self.name)
        assert gradients.squares is not None
        return 0.5 * W.square() * (gradients.squares / gradients.count)
