"""Rounds of selection on growing budgets: many candidates on few tokens, the best of them on more (Jamieson 2016)."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import numpy as np

from secateur.automl.front import dominates
from secateur.automl.space import Levels, Space
from secateur.automl.strategies.base import Judged, Proposal, Strategy

NUMBERS = (16, 4, 1)  # candidates on each rung, the fewest tokens first


class Rounds(Strategy):
    """Draws candidates, and lets the best of them climb the rungs; the first trial is the start on all tokens."""

    def __init__(self, space: Space, start: Levels, rungs: Sequence[int], seed: int) -> None:
        super().__init__(space, start, rungs, seed)
        self.numbers = NUMBERS[-len(self.rungs) :]
        self._begin()

    def _begin(self) -> None:
        self.climbing: list[list[Judged]] = [[] for _ in self.rungs]
        self.waiting: list[Levels] = []
        self.rung, self.left = 0, self.numbers[0]

    @abstractmethod
    def draw(self, random: np.random.Generator) -> Levels:
        """Returns a new candidate."""

    def ask(self, number: int) -> Proposal:
        if self.best is None:
            return Proposal(self.start, self.rungs[-1], {"start": True})
        if self.rung == 0:
            return Proposal(self.draw(self.random(number)), self.rungs[0], {"rung": 0})
        return Proposal(self.waiting[0], self.rungs[self.rung], {"rung": self.rung})

    def tell(self, judged: Judged) -> None:
        super().tell(judged)
        if not judged.own or judged.info.get("rung") != self.rung or judged.tokens != self.rungs[self.rung]:
            return
        if self.rung > 0:
            self.waiting.remove(judged.levels)
        if judged.value is not None:
            self.climbing[self.rung].append(judged)
        self.left -= 1
        if self.left == 0:
            self._climb()

    def _climb(self) -> None:
        """Goes on to the next rung with the best of this one, or begins the next round."""
        some = self.climbing[self.rung]
        beaten = {one.number: sum(dominates(other.goals, one.goals) for other in some) for one in some}
        known = sorted(some, key=lambda one: (beaten[one.number], -(one.value or 0.0)))
        if self.rung + 1 == len(self.rungs) or not known:
            self._begin()
            return
        self.rung += 1
        distinct = list(dict.fromkeys(one.levels for one in known))
        self.waiting = distinct[: self.numbers[self.rung]]
        self.left = len(self.waiting)
