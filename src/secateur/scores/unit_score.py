"""The contract of unit scores: how important is each unit of a group?"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from secateur.calibration.statistics import Gradients, Needs, Statistics
from secateur.errors import ConstantScoreError, ScoreError
from secateur.network.unit_group import UnitGroup

WIDTHS = frozenset({"neuron", "head", "query-head", "channel", "filter", "hidden"})  # that layers with a matrix read
DEPTHS = frozenset({"layer", "attention", "mlp"})  # units that are whole tensors
ALL_UNITS = WIDTHS | DEPTHS | {"expert", "token"}


class Usage(Protocol):
    """How a block's experts are used.

    Attributes:
        count: (units,) tokens that were routed to each expert.
        contribution: (units,) sum over those tokens of the router's weight times the norm of the expert's output.
    """

    @property
    def count(self) -> Tensor: ...

    @property
    def contribution(self) -> Tensor: ...


@dataclass(frozen=True)
class UnitStatistics:
    """What calibration found out about a group. What the score doesn't need may be missing.

    Attributes:
        inputs: By `group.readers`: the statistics of what that layer reads, with the gradients of its weight where
            they are needed.
        influence: (units,) of layers or halves of layers, by the measure that the score needs.
        usage: Of experts.
        tokens: (units,) how often each token of the vocabulary occurs.
        random: Source of random numbers.
    """

    inputs: tuple[Statistics | None, ...] = ()
    influence: Tensor | None = None
    usage: Usage | None = None
    tokens: Tensor | None = None
    random: torch.Generator = field(default_factory=torch.Generator)


class UnitScore(ABC):
    """Importance of a group's units; higher is more important.

    A pure function of the group's tensors and statistics.

    Attributes:
        name: The name in recipes and on the command line.
        needs: The statistics that it reads.
        about: One line for `--help` and the docs.
        fits: The kinds of units that it has a meaning for.
    """

    name: str
    needs: Needs = Needs.NOTHING
    about: str
    fits: frozenset[str]

    @abstractmethod
    def score(self, group: UnitGroup, statistics: UnitStatistics) -> Tensor:
        """Scores a group's units; `secateur.scores.units.scored` also checks what comes out.

        Args:
            group: Of a kind that the score fits.
            statistics: At least what `needs` says.

        Returns:
            (units,) float32.
        """


def checked(values: object, group: UnitGroup, name: str) -> Tensor:
    """Returns (units,) float32 on the CPU: a score's values, if they say something about each unit.

    Args:
        values: What the score `name` gave.
        group: The group that it scored.
        name: The score.

    Raises:
        ScoreError: They are no tensor of real numbers, have another shape, are NaN or infinite, or are all the same.
    """
    where = f"the score '{name}' of {group.name}"
    if not isinstance(values, Tensor):
        raise ScoreError(f"{where} is a {type(values).__name__}; it must be a tensor of shape ({group.count},).")
    if tuple(values.shape) != (group.count,):
        raise ScoreError(f"{where} has the shape {tuple(values.shape)}; its units need ({group.count},).")
    if values.is_complex():
        raise ScoreError(f"{where} is complex ({values.dtype}); it must be real.")
    values = values.detach().to("cpu", torch.float32)
    bad = int((~torch.isfinite(values)).sum())
    if bad:
        advice = "" if ":" in name else ": are the weights finite? Of products in half precision, try compute float32"
        raise ScoreError(f"{where} is NaN or infinite for {bad} of {group.count} units{advice}.")
    if group.count > 1 and bool((values == values[0]).all()):
        raise ConstantScoreError(
            f"{where} is constant ({float(values[0]):g}): it says nothing about which units matter. "
            "Take another score, or other calibration data."
        )
    return values


@dataclass(frozen=True)
class Reading:
    """How one linear layer reads a group's units.

    Attributes:
        W: (out, in) float32, the layer's weight, on the device of the statistics.
        index: (units, width) int64, each unit's columns of W.
        statistics: Of the layer's input.
    """

    W: Tensor
    index: Tensor
    statistics: Statistics

    @property
    def gradients(self) -> Gradients:
        """Those of the weight."""
        if self.statistics.gradients is None:
            raise ValueError("this score needs gradients of the layer's weight.")
        return self.statistics.gradients

    def of_units(self, columns: Tensor) -> Tensor:
        """Returns (units,): the sums over each unit's columns of (in,) numbers."""
        return columns[self.index].sum(1)


def readings(group: UnitGroup, statistics: UnitStatistics, score: str) -> Iterator[Reading]:
    """Yields how each layer reads a group's units, while its weight is in memory.

    Raises:
        ValueError: Statistics that the score declares weren't gathered.
    """
    known = _inputs(group, statistics, score)
    layers = group.network.visit([reader.layer for reader in group.readers])
    for layer, reader, one in zip(layers, group.readers, known, strict=True):
        device = one.total.device
        yield Reading(layer.matrix().to(device, torch.float32), reader.index.to(device), one)


def distinct_inputs(group: UnitGroup, statistics: UnitStatistics, score: str) -> list[tuple[Statistics, Tensor]]:
    """Returns the statistics of each tensor that holds a group's units, once, and the units' (units, width) places.

    Raises:
        ValueError: Statistics that the score declares weren't gathered.
    """
    known = _inputs(group, statistics, score)
    found = {
        reader.layer.reads: (one, reader.index.to(one.total.device))
        for reader, one in zip(group.readers, known, strict=True)
    }
    return list(found.values())


def _inputs(group: UnitGroup, statistics: UnitStatistics, score: str) -> list[Statistics]:
    found = [one for one in statistics.inputs if one is not None]
    if not found or len(found) != len(group.readers):
        raise ValueError(
            f"the score '{score}' needs statistics of what the {len(group.readers)} readers of {group.name} read, "
            f"but got {len(found)}."
        )
    return found


def need_part(part: Tensor | None, score: str, what: str) -> Tensor:
    """Returns sums that a score declares, or raises ValueError: the caller didn't gather them."""
    if part is None:
        raise ValueError(f"the score '{score}' needs {what}.")
    return part
