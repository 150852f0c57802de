"""Squared magnitude: w²."""

import torch
from torch import Tensor

from secateur.calibration.statistics import Statistics
from secateur.scores.base import Score


class L2(Score):
    """w²; for a vector the L2 norm, the root of the sum of squares."""

    name = "l2"
    about = "squared magnitude w²; no calibration"

    def weights(self, W: Tensor, statistics: Statistics | None, random: torch.Generator) -> Tensor:
        return W.square()

    def vectors(self, V: Tensor, statistics: Statistics | None, random: torch.Generator) -> Tensor:
        return V.square().sum(1).sqrt()
