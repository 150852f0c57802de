"""REAP: what an expert adds to the output of its block when it is asked."""

from __future__ import annotations

from torch import Tensor

from secateur.calibration.statistics import Needs
from secateur.network.unit_group import UnitGroup
from secateur.scores.unit_score import UnitScore, UnitStatistics


class Reap(UnitScore):
    """Mean over the tokens routed to expert j of g_j ||f_j||₂, g the router's weights (Lasby et al. 2025,
    arXiv 2510.13999).

    An expert that no token is routed to is worth 0.
    """

    name = "reap"
    needs = Needs.USAGE
    about = "mean norm of what the expert adds, over the tokens that are routed to it"
    fits = frozenset({"expert"})

    def score(self, group: UnitGroup, statistics: UnitStatistics) -> Tensor:
        usage = statistics.usage
        if usage is None:
            raise ValueError(f"the score '{self.name}' needs Needs.USAGE.")
        return (usage.contribution / usage.count.clamp_min(1)).float()
