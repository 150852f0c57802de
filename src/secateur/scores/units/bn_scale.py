"""How much a batch norm lets through of a unit."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from secateur.errors import ScoreError
from secateur.network.unit_group import Slice, UnitGroup
from secateur.scores.unit_score import UnitScore, UnitStatistics


class BnScale(UnitScore):
    """|γ| of the batch norms that a unit passes through, summed over them.

    Network slimming (Liu et al. 2017, arXiv 1708.06519, section 3): γ is each channel's scaling factor. It says most
    of networks that were trained with an L1 penalty on γ.
    """

    name = "bn-scale"
    about = "absolute scale of the batch norms that the unit passes through"
    fits = frozenset({"filter", "neuron"})

    def score(self, group: UnitGroup, statistics: UnitStatistics) -> Tensor:
        scales = [part for part in group.follows if _is_scale(group, part)]
        if not scales:
            raise ScoreError(
                f"the score 'bn-scale' of {group.name}: its units pass through no batch norm with a scale. "
                "Take another score, l2 for instance."
            )
        return torch.stack([group.vectors(part).abs().sum(1) for part in scales]).sum(0)


def _is_scale(group: UnitGroup, part: Slice) -> bool:
    path, _, attribute = part.name.rpartition(".")
    return attribute == "weight" and isinstance(
        group.network.model.get_submodule(path), nn.modules.batchnorm._BatchNorm
    )
