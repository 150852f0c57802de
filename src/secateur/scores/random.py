"""Chance, the baseline that every score has to beat."""

import torch
from torch import Tensor

from secateur.calibration.statistics import Statistics
from secateur.scores.base import Score


class Random(Score):
    """Uniform random numbers in [0, 1), from the run's seed."""

    name = "random"
    about = "chance, seeded; no calibration"

    def weights(self, W: Tensor, statistics: Statistics | None, random: torch.Generator) -> Tensor:
        return torch.rand(W.shape, generator=random).to(W)

    def vectors(self, V: Tensor, statistics: Statistics | None, random: torch.Generator) -> Tensor:
        return torch.rand(V.shape[0], generator=random).to(V)
