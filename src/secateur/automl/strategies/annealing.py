"""Simulated annealing: a walk that takes worse steps ever less often (Kirkpatrick, Gelatt and Vecchi 1983)."""

from __future__ import annotations

import math
from collections.abc import Sequence

from secateur.automl.space import Levels, Space
from secateur.automl.strategies.base import Judged, Proposal, Strategy

COOLING = 0.99  # of the temperature, by step
BEGINNING = 0.001  # temperature, of the start's value: about what a switch changes
MOST = 10.0  # that the start's value counts as: one outside of the limits is far from any


class Annealing(Strategy):
    """Walks by switches of two places; each step is judged on all tokens."""

    name = "annealing"
    about = "a random walk that takes worse steps ever less often"

    def __init__(self, space: Space, start: Levels, rungs: Sequence[int], seed: int) -> None:
        super().__init__(space, start, rungs, seed)
        self.here: Judged | None = None
        self.temperature = 0.0

    def ask(self, number: int) -> Proposal:
        if self.here is None:
            return Proposal(self.start, self.rungs[-1], {"start": True})
        return Proposal(self.space.switched(self.here.levels, self.random(number), 1), self.rungs[-1])

    def tell(self, judged: Judged) -> None:
        super().tell(judged)
        if judged.value is None or judged.tokens != self.rungs[-1]:
            return
        if self.here is None or self.here.value is None:
            self.here, self.temperature = judged, BEGINNING * min(max(abs(judged.value), 1e-9), MOST)
            return
        worse = self.here.value - judged.value
        if worse <= 0 or self.random(judged.number).random() < math.exp(-worse / self.temperature):
            self.here = judged
        self.temperature *= COOLING
