"""Evolution: switches of levels between places, selected on growing numbers of tokens.

Sieberling, Kuznedelev, Kurtic and Alistarh 2024, "EvoPress: Towards Optimal Dynamic Model Compression via Evolutionary
Search", arXiv 2410.14649, algorithm 1: offspring of the best candidate differ from it by few level switches, each of
which raises one place and lowers others by as much. A part of the offspring crosses the best with an earlier best.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from secateur.automl.space import Levels, Space
from secateur.automl.strategies.base import Judged
from secateur.automl.strategies.rounds import Rounds

SWITCHES = 3  # at most, the least of two draws
CROSSED = 0.2  # share of the offspring that have two parents
ELITE = 4  # earlier best candidates that may be the second parent


class Evolution(Rounds):
    """Keeps the best, or the front of several goals, and tries what is near to it."""

    name = "evolution"
    about = "level switches of the best candidate, selected on growing numbers of tokens (EvoPress)"
    fronts = True

    def __init__(self, space: Space, start: Levels, rungs: Sequence[int], seed: int) -> None:
        super().__init__(space, start, rungs, seed)
        self.elite: list[Judged] = []

    def draw(self, random: np.random.Generator) -> Levels:
        parent = self.front[random.integers(len(self.front))]
        levels = list(parent.levels)
        others = [one.levels for one in self.elite if one.levels != parent.levels]
        if others and random.random() < CROSSED:
            other = others[random.integers(len(others))]
            taken = random.random(len(levels)) < 0.5
            levels = [b if take else a for a, b, take in zip(levels, other, taken, strict=True)]
        return self.space.switched(levels, random, int(min(random.integers(1, SWITCHES + 1, 2))))

    def tell(self, judged: Judged) -> None:
        super().tell(judged)
        if judged.value is not None and judged.tokens == self.rungs[-1]:
            self.elite = sorted([*self.elite, judged], key=lambda one: -(one.value or 0.0))[:ELITE]
