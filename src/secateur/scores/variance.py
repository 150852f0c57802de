"""Variance of a vector."""

import torch
from torch import Tensor

from secateur.calibration.statistics import Statistics
from secateur.errors import ScoreError
from secateur.scores.base import Score


class Variance(Score):
    """The population variance of a vector's weights. A single weight has none."""

    name = "variance"
    about = "population variance of a vector; not for single weights"

    def weights(self, W: Tensor, statistics: Statistics | None, random: torch.Generator) -> Tensor:
        raise ScoreError(
            "the score 'variance' compares vectors (neurons, filters, heads): the variance of a single weight "
            "is always 0. Use l1, wanda or ria for single weights."
        )

    def vectors(self, V: Tensor, statistics: Statistics | None, random: torch.Generator) -> Tensor:
        return V.var(1, correction=0)
