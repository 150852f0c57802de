"""The contract of a search strategy."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from secateur.automl.front import Goals, front_of, knee
from secateur.automl.space import Levels, Space


@dataclass(frozen=True)
class Proposal:
    """A candidate that is to be judged.

    Attributes:
        levels: The candidate.
        tokens: On how many tokens.
        info: Plain data that is kept with the trial, and that the strategy wants to see again.
        text: Which of the text is read where it isn't all of it: values of one number can be compared.
    """

    levels: Levels
    tokens: int
    info: Mapping[str, Any] = field(default_factory=dict)
    text: int = 0


@dataclass(frozen=True)
class Judged:
    """A candidate that was judged.

    Attributes:
        number: Of the trial.
        levels, tokens, info, text: As they were proposed.
        value: What it is worth, more being better; None where judging it failed.
        own: Whether this strategy proposed it, in this process.
        others: Measures that make a front with the value; less is better.
    """

    number: int
    levels: Levels
    tokens: int
    value: float | None
    info: Mapping[str, Any] = field(default_factory=dict)
    own: bool = True
    others: tuple[float, ...] = ()
    text: int = 0

    @property
    def goals(self) -> Goals:
        """What more is better of: the value, and the measures turned round."""
        assert self.value is not None
        return (self.value, *(-other for other in self.others))


class Strategy(ABC):
    """Proposes candidates and learns what they are worth. Every candidate meets the space's budget.

    A strategy that is told of all trials of a study, in their order, goes on from there: those of other workers and of
    an earlier process as well as its own.

    Attributes:
        name: The name in recipes and on the command line.
        about: One line for `--help` and the docs.
        rungs: Tokens to judge on, ascending; only values of the same tokens are compared.
        fronts: Whether it can look for a front of candidates, by several goals.
        front: The candidates that none beats by every goal among those that were judged on the most tokens: the best,
            where there is one goal.
        best: The best of them; of several goals, the one that gives up the least of each.
    """

    name: ClassVar[str]
    about: ClassVar[str]
    fronts: ClassVar[bool] = False

    def __init__(self, space: Space, start: Levels, rungs: Sequence[int], seed: int) -> None:
        """
        Args:
            space: What is chosen from.
            start: The candidate to begin with.
            rungs: Tokens to judge on.
            seed: Of what it draws.
        """
        self.space, self.start, self.rungs, self.seed = space, start, tuple(rungs), seed
        self.front: list[Judged] = []
        self.best: Judged | None = None

    def random(self, number: int) -> np.random.Generator:
        """Returns a source of random numbers that belongs to a trial."""
        return np.random.default_rng((self.seed, number))

    @abstractmethod
    def ask(self, number: int) -> Proposal:
        """Returns the next candidate.

        Args:
            number: About the number that the trial will have; workers ask with different ones.
        """

    def tell(self, judged: Judged) -> None:
        """Takes note of a candidate that was judged."""
        if judged.value is None or judged.tokens != self.rungs[-1]:
            return
        pairs = front_of([(one.goals, one) for one in [*self.front, judged]])
        self.front, self.best = [one for _, one in pairs], knee(pairs)
