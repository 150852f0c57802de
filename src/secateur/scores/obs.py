"""Optimal Brain Surgeon: the error that removing a weight leaves after the others have made up for it."""

import torch
from torch import Tensor

from secateur.calibration.statistics import Needs, Statistics
from secateur.linear_algebra import damped_cholesky
from secateur.scores.base import Score, need


class Obs(Score):
    """W_ij² / [H⁻¹]_jj, H the damped Gram matrix (Hassibi and Stork 1993; Frantar and Alistarh 2023, eq. 3)."""

    name = "obs"
    needs = Needs.GRAM
    about = "error left after an optimal update of the other weights; SparseGPT's own saliency"

    def weights(self, W: Tensor, statistics: Statistics | None, random: torch.Generator) -> Tensor:
        known = need(statistics, self.name)
        L, _ = damped_cholesky(known.G)
        S = W.square() / torch.cholesky_inverse(L).diagonal()
        return S * (known.norms > 0)  # an input that never fires can go at no cost
