"""Mean absolute value."""

import torch
from torch import Tensor

from secateur.calibration.statistics import Statistics
from secateur.scores.base import Score


class MeanAbs(Score):
    """The L1 norm divided by the length, so that vectors of different lengths compare; |w| for a weight."""

    name = "mean_abs"
    about = "mean |w| of a vector; |w| for single weights; no calibration"

    def weights(self, W: Tensor, statistics: Statistics | None, random: torch.Generator) -> Tensor:
        return W.abs()

    def vectors(self, V: Tensor, statistics: Statistics | None, random: torch.Generator) -> Tensor:
        return V.abs().mean(1)
