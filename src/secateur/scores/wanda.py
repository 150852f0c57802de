"""Wanda: magnitude times the norm of the input."""

import torch
from torch import Tensor

from secateur.calibration.statistics import Needs, Statistics
from secateur.scores.base import Score, need


class Wanda(Score):
    """|W_ij| ||X_j||₂ (Sun et al. 2023, arXiv 2306.11695, eq. 1).

    The paper compares within each output: `--per output`.
    """

    name = "wanda"
    needs = Needs.MOMENTS
    about = "|w| times the norm of its input"

    def weights(self, W: Tensor, statistics: Statistics | None, random: torch.Generator) -> Tensor:
        return W.abs() * need(statistics, self.name).norms
