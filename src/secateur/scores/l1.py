"""Magnitude: |w|."""

import torch
from torch import Tensor

from secateur.calibration.statistics import Statistics
from secateur.scores.base import Score


class L1(Score):
    """|w|; for a vector the L1 norm, the sum of |w|. (Han et al. 2015, arXiv 1506.02626.)"""

    name = "l1"
    about = "magnitude |w|; no calibration"

    def weights(self, W: Tensor, statistics: Statistics | None, random: torch.Generator) -> Tensor:
        return W.abs()
