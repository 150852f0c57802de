"""Influence of layers and of halves of layers, as calibration/influence.py measures it."""

from __future__ import annotations

from torch import Tensor

from secateur.calibration.statistics import Needs
from secateur.network.unit_group import UnitGroup
from secateur.scores.unit_score import DEPTHS, UnitScore, UnitStatistics, need_part


class BlockInfluence(UnitScore):
    """1 - E cos(x, y), x and y the hidden states before and behind (Men et al. 2024, arXiv 2403.03853, eq. 1).

    For half of a layer, x and y are the block's outputs without and with that half. (He et al. 2024, arXiv 2406.15786,
    take the half's own input and output, which leaves out what the MLP makes of the attention.)
    """

    name = "block-influence"
    needs = Needs.BLOCK_INFLUENCE
    about = "how far the layer, or half of it, turns the hidden states"
    fits = DEPTHS

    def score(self, group: UnitGroup, statistics: UnitStatistics) -> Tensor:
        return need_part(statistics.influence, self.name, "Needs.BLOCK_INFLUENCE").float()


class LeaveOneOut(UnitScore):
    """KL(dense || without the unit) in nats per token.

    The first step of removing layers greedily by what it does to the output (Song et al. 2024, arXiv 2402.09025,
    algorithm 1, with perplexity; the KL divergence as in Sieberling et al. 2024, arXiv 2410.14649, section 3.2).
    """

    name = "loo-kl"
    needs = Needs.LEAVE_ONE_OUT
    about = "KL divergence from the dense model without the layer, or half of it"
    fits = DEPTHS

    def score(self, group: UnitGroup, statistics: UnitStatistics) -> Tensor:
        return need_part(statistics.influence, self.name, "Needs.LEAVE_ONE_OUT").float()
