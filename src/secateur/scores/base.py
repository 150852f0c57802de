"""The contract of scores: how important is each weight, or each vector of weights?"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from secateur.calibration.statistics import Gradients, Needs, Statistics


class Score(ABC):
    """Importance of weights; higher is more important.

    A score is a pure function of a weight and the statistics of its input. `weights` scores single weights,
    `vectors` scores whole rows (what a structured unit comes down to).

    Attributes:
        name: The name in recipes and on the command line.
        needs: The statistics that it reads.
        about: One line for `--help` and the docs.
    """

    name: ClassVar[str]
    needs: ClassVar[Needs] = Needs.NOTHING
    about: ClassVar[str]

    @abstractmethod
    def weights(self, W: Tensor, statistics: Statistics | None, random: torch.Generator) -> Tensor:
        """Scores single weights.

        Args:
            W: (out, in) float32.
            statistics: Of the layer's input; None where `needs` is NOTHING.
            random: Source of random numbers for scores that draw.

        Returns:
            (out, in) float32.

        Raises:
            ScoreError: The score has no meaning for single weights.
        """

    def vectors(self, V: Tensor, statistics: Statistics | None, random: torch.Generator) -> Tensor:
        """Scores vectors by the sum of their weights' scores, unless the score says otherwise.

        Args:
            V: (units, length) float32, one unit's weights a row.
            statistics: Of the input that the columns read, where the score needs it.
            random: Source of random numbers.

        Returns:
            (units,) float32.
        """
        return self.weights(V, statistics, random).sum(1)


def need(statistics: Statistics | None, score: str) -> Statistics:
    """Returns the statistics, or raises ValueError: the caller didn't gather what the score declares."""
    if statistics is None:
        raise ValueError(f"the score '{score}' needs statistics of the layer's input.")
    return statistics


def need_gradients(statistics: Statistics | None, score: str) -> Gradients:
    """Returns the gradients, or raises ValueError: the caller didn't gather what the score declares."""
    found = need(statistics, score).gradients
    if found is None:
        raise ValueError(f"the score '{score}' needs gradients of the layer's weight.")
    return found
