"""Optuna's own samplers behind the same contract: a study in memory that is asked and told."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import optuna

from secateur.automl.space import Levels, Space
from secateur.automl.strategies.base import Judged
from secateur.automl.strategies.rounds import Rounds


class Sampled(Rounds):
    """Draws by one of Optuna's samplers, moved until the budget is met; the sampler is told of where it came to."""

    def __init__(self, space: Space, start: Levels, rungs: Sequence[int], seed: int) -> None:
        super().__init__(space, start, rungs, seed)
        self.distributions: dict[str, optuna.distributions.BaseDistribution] = {
            place.name: optuna.distributions.IntDistribution(0, len(place.costs) - 1) for place in space.places
        }
        self.study: optuna.Study | None = None  # until the first candidate says how many goals there are
        self.asked: dict[Levels, optuna.trial.Trial] = {}

    def sampler(self) -> optuna.samplers.BaseSampler:
        """Returns the sampler."""
        raise TypeError(f"{type(self).__name__} names no sampler.")

    def draw(self, random: np.random.Generator) -> Levels:
        assert self.study is not None
        trial = self.study.ask(self.distributions)
        levels = self.space.settled([trial.params[place.name] for place in self.space.places], random)
        self.asked[levels] = trial
        return levels

    def tell(self, judged: Judged) -> None:
        super().tell(judged)
        if self.study is None and judged.value is not None:
            directions = [optuna.study.StudyDirection.MAXIMIZE] * len(judged.goals)
            self.study = optuna.create_study(directions=directions, sampler=self.sampler())
        if judged.tokens != self.rungs[0] or self.study is None:
            return
        trial = self.asked.pop(judged.levels, None)
        if trial is not None:
            failed = optuna.trial.TrialState.FAIL if judged.value is None else None
            self.study.tell(trial, None if judged.value is None else judged.goals, state=failed)
        elif judged.value is not None:
            params = {place.name: level for place, level in zip(self.space.places, judged.levels, strict=True)}
            self.study.add_trial(
                optuna.trial.create_trial(params=params, distributions=self.distributions, values=judged.goals)
            )


class Tpe(Sampled):
    """Tree-structured Parzen estimators (Bergstra et al. 2011)."""

    name = "tpe"
    about = "Optuna's tree-structured Parzen estimators"
    fronts = True

    def sampler(self) -> optuna.samplers.BaseSampler:
        return optuna.samplers.TPESampler(seed=self.seed)


class Nsga2(Sampled):
    """A genetic algorithm (Deb et al. 2002)."""

    name = "nsga2"
    about = "Optuna's NSGA-II"
    fronts = True

    def sampler(self) -> optuna.samplers.BaseSampler:
        return optuna.samplers.NSGAIISampler(seed=self.seed)


class CmaEs(Sampled):
    """Covariance matrix adaptation (Hansen and Ostermeier 2001)."""

    name = "cmaes"
    about = "Optuna's CMA-ES (pip install cmaes)"

    def sampler(self) -> optuna.samplers.BaseSampler:
        return optuna.samplers.CmaEsSampler(seed=self.seed)
