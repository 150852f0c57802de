"""Frequency: how often a token of the vocabulary occurs."""

from __future__ import annotations

from torch import Tensor

from secateur.calibration.statistics import Needs
from secateur.network.unit_group import UnitGroup
from secateur.scores.unit_score import UnitScore, UnitStatistics, need_part


class Frequency(UnitScore):
    """The number of times that a token occurs in the text (as in Abdaoui et al. 2020, arXiv 2010.05609, section 2)."""

    name = "frequency"
    needs = Needs.TOKENS
    about = "how often the token occurs in the calibration text"
    fits = frozenset({"token"})

    def score(self, group: UnitGroup, statistics: UnitStatistics) -> Tensor:
        return need_part(statistics.tokens, self.name, "Needs.TOKENS").float()
