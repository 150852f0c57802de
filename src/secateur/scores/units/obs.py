"""Optimal Brain Surgeon: the error that removing a unit leaves after the others have made up for it."""

from __future__ import annotations

import torch
from torch import Tensor

from secateur.calibration.statistics import Needs, Statistics
from secateur.errors import ScoreError
from secateur.linear_algebra import damped_cholesky
from secateur.network.unit_group import UnitGroup
from secateur.scores.unit_score import WIDTHS, UnitScore, UnitStatistics, readings


class Obs(UnitScore):
    """½ tr(W_S ([H⁻¹]_SS)⁻¹ W_Sᵀ) over a unit's columns S, summed over the layers that read it.

    Hassibi and Stork 1993, for blocks of weights as in Kurtic et al. 2023 (ZipLM), arXiv 2302.04089. H is the
    damped mean Gram matrix E[x xᵀ], so the score is half of the mean squared error per token.
    """

    name = "obs"
    needs = Needs.GRAM
    about = "error left after an optimal update of the layers that read the unit"
    fits = WIDTHS

    def score(self, group: UnitGroup, statistics: UnitStatistics) -> Tensor:
        found = []
        gram, factors = None, torch.zeros(())  # of the last input: layers that read the same one follow each other
        for one in readings(group, statistics, self.name):
            if gram is None or gram is not one.statistics.gram:
                gram, factors = one.statistics.gram, _factors(one.statistics, one.index, group.name)
            W = one.W * (one.statistics.norms > 0)  # an input that never fires can go at no cost
            W_S = W.T[one.index]  # (units, width, out)
            Y = torch.linalg.solve_triangular(factors, W_S, upper=False)
            found.append(0.5 * Y.square().sum((1, 2)) / max(one.statistics.count, 1))
        return torch.stack(found).sum(0)


def _factors(statistics: Statistics, index: Tensor, name: str) -> Tensor:
    """Returns (units, width, width) float32: the lower Cholesky factor of each unit's part of H⁻¹.

    The parts are small, so they are factorised in float64 where the device has it.
    """
    L, _ = damped_cholesky(statistics.G)
    parts = torch.cholesky_inverse(L)[index[:, :, None], index[:, None, :]]
    factors, info = torch.linalg.cholesky_ex(parts.to(statistics.total.dtype))
    if bool((info != 0).any()):
        raise ScoreError(
            f"the score 'obs' of {name}: part of the inverse Gram matrix isn't positive definite; "
            "use more calibration data, or --score wanda."
        )
    found: Tensor = factors.float()
    return found
