"""RIA: relative importance and activations."""

import torch
from torch import Tensor

from secateur.calibration.statistics import Needs, Statistics
from secateur.scores.base import Score, need


class Ria(Score):
    """(|W_ij| / Σ_k |W_kj| + |W_ij| / Σ_k |W_ik|) ||X_j||₂^½ (Zhang et al. 2024, ICLR, eq. 4, a = 0.5)."""

    name = "ria"
    needs = Needs.MOMENTS
    about = "|w| relative to its row and column, times the root of its input's norm"

    def weights(self, W: Tensor, statistics: Statistics | None, random: torch.Generator) -> Tensor:
        A = W.abs()
        tiny = torch.finfo(A.dtype).tiny  # a row or column of zeros has no relative importance
        relative = A / A.sum(0, keepdim=True).clamp_min(tiny) + A / A.sum(1, keepdim=True).clamp_min(tiny)
        return relative * need(statistics, self.name).norms.sqrt()
