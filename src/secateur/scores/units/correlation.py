"""Correlation: how little the other units could stand in for a unit."""

from __future__ import annotations

import torch
from torch import Tensor

from secateur.calibration.statistics import Needs, Statistics
from secateur.errors import ScoreError
from secateur.network.unit_group import UnitGroup
from secateur.scores.unit_score import WIDTHS, UnitScore, UnitStatistics, distinct_inputs

CONSTANT = 1e-5  # variance relative to the mean square, below which a feature is as good as a bias


class Correlation(UnitScore):
    """1 - mean |corr(x_i, x_j)| over a unit's features i and the other units' features j.

    What others can stand in for goes first; Mariet and Sra 2016, arXiv 1511.05077, remove by the same idea, with
    determinants in place of the mean. A feature that never changes is worth 0. A mean over the tensors that hold the
    unit. It takes three units to tell any apart.
    """

    name = "correlation"
    needs = Needs.GRAM
    about = "1 less the mean correlation with the other units' activations"
    fits = WIDTHS

    def score(self, group: UnitGroup, statistics: UnitStatistics) -> Tensor:
        if group.count == 2:
            raise ScoreError(
                f"the score '{self.name}' of {group.name}: each of two units is as close to the other; "
                "take another score, such as obs."
            )
        inputs = distinct_inputs(group, statistics, self.name)
        return torch.stack([_alone(one, index) for one, index in inputs]).mean(0)


def _alone(statistics: Statistics, index: Tensor) -> Tensor:
    """Returns (units,): how much each unit stands alone in one tensor; index: (units, width)."""
    units, width = index.shape
    mean, variance = statistics.mean, statistics.variance
    varies = variance > CONSTANT * statistics.mean_squares
    R = statistics.G / max(statistics.count, 1)
    R -= torch.outer(mean, mean)
    scale = torch.where(varies, variance.rsqrt(), 0.0)
    R.mul_(scale[:, None]).mul_(scale).abs_().clamp_(max=1)
    columns = index.flatten()
    together = R[:, columns].sum(1)[index]  # (units, width): with all units' features
    within = R[index[:, :, None], index[:, None, :]].sum(2)
    others = (units - 1) * width
    return ((1 - (together - within) / max(others, 1)) * varies[index]).mean(1)
