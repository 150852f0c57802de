"""Rounds of selection on growing budgets: many candidates on few tokens, the best of them on more (Jamieson 2016)."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import numpy as np

from secateur.automl.front import dominates
from secateur.automl.space import Levels, Space
from secateur.automl.strategies.base import Judged, Proposal, Strategy

DRAWN = 16  # candidates of a round
KEPT = 4  # one of so many climbs to the next rung


class Rounds(Strategy):
    """Draws candidates, and lets the best of them climb the rungs; the first trial is the start on all tokens.

    The best candidate so far is judged beside those of a round, of which none climbs to the last rung that it beats.
    All of a round read the same text on a rung, and other rounds another one; on the last rung all read all of it.
    """

    def __init__(self, space: Space, start: Levels, rungs: Sequence[int], seed: int) -> None:
        super().__init__(space, start, rungs, seed)
        last = len(self.rungs) - 1
        self.numbers = tuple(max(1, DRAWN // KEPT**rung) if rung < last else 1 for rung in range(last + 1))
        self.round: int | None = None  # the number of its first trial

    def _begin(self, number: int) -> None:
        self.round, self.rung, self.left = number, 0, self.numbers[0]
        self.climbing: list[Judged] = []
        assert self.best is not None
        self.waiting = [self.best.levels] if len(self.rungs) > 1 else []

    @abstractmethod
    def draw(self, random: np.random.Generator) -> Levels:
        """Returns a new candidate."""

    def text(self, number: int) -> int:
        """Returns which text the round reads whose first trial has a number."""
        return number

    def ask(self, number: int) -> Proposal:
        if self.best is None:
            return Proposal(self.start, self.rungs[-1], {"start": True})
        if self.round is None:
            self._begin(number)
        assert self.round is not None
        drawn = not self.waiting
        levels = self.draw(self.random(number)) if drawn else self.waiting[0]
        text = 0 if self.rung + 1 == len(self.rungs) else self.text(self.round)
        return Proposal(levels, self.rungs[self.rung], {"rung": self.rung, "drawn": drawn}, text)

    def tell(self, judged: Judged) -> None:
        super().tell(judged)
        if not judged.own or "rung" not in judged.info:
            return
        if judged.info["drawn"]:
            self.left -= 1
        else:
            self.waiting.pop(0)
        if judged.value is not None:
            self.climbing.append(judged)
        if not self.left and not self.waiting:
            self._climb()

    def _climb(self) -> None:
        """Goes on to the next rung with the best of this one, or ends the round."""
        some = self.climbing
        beaten = {one.number: sum(dominates(other.goals, one.goals) for other in some) for one in some}
        known = sorted(some, key=lambda one: (beaten[one.number], -(one.value or 0.0)))
        self.rung, self.climbing = self.rung + 1, []
        if self.rung == len(self.rungs):
            self.round = None
            return
        if self.rung + 1 == len(self.rungs):
            best = {one.levels for one in self.front}
            bars = [one for one in some if one.levels in best]
            known = [one for one in known if not any(one is bar or dominates(bar.goals, one.goals) for bar in bars)]
        self.waiting = list(dict.fromkeys(one.levels for one in known))[: self.numbers[self.rung]]
        if not self.waiting:
            self.round = None
