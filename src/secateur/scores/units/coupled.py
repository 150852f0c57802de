"""Scores of weights alone, taken over all tensors that are coupled in a unit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from torch import Tensor

from secateur.errors import UsageError, did_you_mean
from secateur.network.unit_group import Halves, UnitGroup
from secateur.scores.base import Score
from secateur.scores.unit_score import ALL_UNITS, UnitScore, UnitStatistics

COMBINE: Mapping[str, Callable[[Tensor], Tensor]] = MappingProxyType(
    {
        "sum": lambda parts: parts.sum(0),
        "mean": lambda parts: parts.mean(0),
        "max": lambda parts: parts.amax(0),
    }
)


class Coupled(UnitScore):
    """A score of vectors, for each coupled tensor of weights, and then the sum, mean or maximum over the tensors.

    The tensors are those that compute a unit and those that read it, without biases, norms and tables: for a neuron of
    a gated MLP its rows of gate and up and its column of down; for a head its rows of q, k and v and its columns of o;
    for a channel its places in every weight of every block, in the embeddings and in the output head. A layer, or
    half of one, is one vector of all its parameters.
    """

    fits = ALL_UNITS

    def __init__(self, score: Score, combine: str = "sum") -> None:
        """Raises UsageError if there is no such way to combine."""
        if combine not in COMBINE:
            raise UsageError(f"unknown way to combine scores '{combine}'.{did_you_mean(combine, COMBINE)}")
        self.name = score.name
        self.about = score.about
        self.combine = combine
        self._vectors = score.vectors

    def score(self, group: UnitGroup, statistics: UnitStatistics) -> Tensor:
        if group.whole:
            return torch.cat([self._whole(group, unit, statistics) for unit in range(group.count)])
        with group.network.resident(group.block):
            found = [self._vectors(group.vectors(part), None, statistics.random) for part in group.weights]
        return COMBINE[self.combine](torch.stack(found))

    def _whole(self, group: UnitGroup, unit: int, statistics: UnitStatistics) -> Tensor:
        """Returns (1,); one unit at a time, since their lengths differ and each may be large."""
        block = group.blocks[unit] if isinstance(group, Halves) else unit
        with group.network.resident(block):
            vector = torch.cat([group.tensor(name).flatten().float() for name in group.whole[unit]])
            return self._vectors(vector[None], None, statistics.random)
