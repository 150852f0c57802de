"""Gradient scores: what the loss does, to first or second order, when all weights that read a unit go."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from secateur.calibration.statistics import Needs
from secateur.network.unit_group import UnitGroup
from secateur.scores.unit_score import WIDTHS, Reading, UnitScore, UnitStatistics, need_part, readings


class _Sensitivity(UnitScore):
    """A sum over all weights that read a unit."""

    fits = WIDTHS

    @abstractmethod
    def weights(self, one: Reading) -> Tensor:
        """Returns (out, in): each weight's term."""

    def score(self, group: UnitGroup, statistics: UnitStatistics) -> Tensor:
        found = [one.of_units(self.weights(one).sum(0)) for one in readings(group, statistics, self.name)]
        return torch.stack(found).sum(0)


class Taylor(_Sensitivity):
    """|Σ w E[g]| over all weights w that read a unit: the derivative of the mean loss by a gate on the unit.

    Molchanov et al. 2019, arXiv 1906.10771, section 3.1, for a gate after the unit. Their score of a structure is the
    square of this, which ranks the same. (2017, arXiv 1611.06440, eq. 7 takes the absolute value per example.)
    """

    name = "taylor"
    needs = Needs.GRADIENT
    about = "|sum of w times its mean gradient| over the weights that read the unit, first order"

    def weights(self, one: Reading) -> Tensor:
        return _first_order(one, self.name)

    def score(self, group: UnitGroup, statistics: UnitStatistics) -> Tensor:
        return super().score(group, statistics).abs()


class Snip(_Sensitivity):
    """Σ |w E[g]| over all weights w that read a unit.

    The sum of connection sensitivities (Lee et al. 2019, arXiv 1810.02340, eq. 5, without the sum that norms it, which
    ranks the same).
    """

    name = "snip"
    needs = Needs.GRADIENT
    about = "sum of |w times its mean gradient| over the weights that read the unit"

    def weights(self, one: Reading) -> Tensor:
        return _first_order(one, self.name).abs()


class Fisher(_Sensitivity):
    """½ Σ w² E[g²] over all weights w that read a unit.

    The diagonal of the empirical Fisher matrix (Theis et al. 2018, arXiv 1801.05787, section 2). Their gate on a whole
    feature would take the square of the sum per example, which no sum over weights can tell.
    """

    name = "fisher"
    needs = Needs.GRADIENT_SQUARE
    about = "half the sum of w² times the mean squared gradient over the weights that read the unit"

    def weights(self, one: Reading) -> Tensor:
        squares = need_part(one.gradients.squares, self.name, "Needs.GRADIENT_SQUARE")
        return 0.5 * one.W.square() * squares.to(one.W) / max(one.gradients.count, 1)


def _first_order(one: Reading, score: str) -> Tensor:
    total = need_part(one.gradients.total, score, "Needs.GRADIENT")
    return one.W * total.to(one.W) / max(one.gradients.count, 1)
