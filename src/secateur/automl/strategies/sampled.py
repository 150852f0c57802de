"""Optuna's own samplers behind the same contract: a study in memory that is asked and told."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import optuna
from optuna.trial import TrialState, create_trial

from secateur.automl.space import Levels, Space
from secateur.automl.strategies.base import Judged
from secateur.automl.strategies.rounds import Rounds
from secateur.automl.trials import distributions_of, params_of


class Sampled(Rounds):
    """Draws by one of Optuna's samplers, moved until the budget is met; the sampler is told of where that came to.

    What others judged, such as the start, is told as if the sampler had proposed it. All rounds read the same text on a
    rung, as the sampler compares them.
    """

    def __init__(self, space: Space, start: Levels, rungs: Sequence[int], seed: int) -> None:
        super().__init__(space, start, rungs, seed)
        self.distributions = distributions_of(space)
        self.study: optuna.Study | None = None  # until the first draw
        self.asked: dict[Levels, optuna.Trial] = {}
        self.known: dict[Levels, Judged] = {}

    def sampler(self, seed: int) -> optuna.samplers.BaseSampler:
        """Returns the sampler."""
        raise TypeError(f"{type(self).__name__} names no sampler.")

    def text(self, number: int) -> int:
        return 0

    def draw(self, random: np.random.Generator) -> Levels:
        if self.study is None:
            assert self.best is not None
            directions = [optuna.study.StudyDirection.MAXIMIZE] * len(self.best.goals)
            sampler = self.sampler(int(random.integers(1 << 31)))
            self.study = optuna.create_study(directions=directions, sampler=sampler)
            for judged in self.known.values():
                self._note(self.study, judged)
        trial = self.study.ask(self.distributions)
        levels = self.space.settled([trial.params[place.name] for place in self.space.places], random)
        self.asked[levels] = trial
        return levels

    def tell(self, judged: Judged) -> None:
        super().tell(judged)
        if judged.tokens != self.rungs[0] or judged.levels in self.known:
            return
        if judged.value is not None:
            self.known[judged.levels] = judged
            if self.study is not None:
                self._note(self.study, judged)
        elif self.study is not None and judged.levels in self.asked:
            self.study.tell(self.asked.pop(judged.levels), state=TrialState.FAIL)

    def _note(self, study: optuna.Study, judged: Judged) -> None:
        """Puts a candidate into the study, with what the sampler itself has noted of it."""
        trial = self.asked.pop(judged.levels, None)
        if trial is None:
            trial = study.ask(dict([*self.distributions.items()][:1]))  # one parameter is enough to be noted
        noted = study.get_trials(deepcopy=False)[trial.number].system_attrs
        study.tell(trial, state=TrialState.FAIL)  # it was asked for elsewhere, before it met the budget
        study.add_trial(
            create_trial(
                params=params_of(self.space, judged.levels),
                distributions=self.distributions,
                values=judged.goals,
                system_attrs=dict(noted),
            )
        )


class Tpe(Sampled):
    """Tree-structured Parzen estimators (Bergstra et al. 2011)."""

    name = "tpe"
    about = "Optuna's tree-structured Parzen estimators"
    fronts = True

    def sampler(self, seed: int) -> optuna.samplers.BaseSampler:
        return optuna.samplers.TPESampler(seed=seed)


class Nsga2(Sampled):
    """A genetic algorithm (Deb et al. 2002)."""

    name = "nsga2"
    about = "Optuna's NSGA-II"
    fronts = True

    def sampler(self, seed: int) -> optuna.samplers.BaseSampler:
        return optuna.samplers.NSGAIISampler(seed=seed)


class CmaEs(Sampled):
    """Covariance matrix adaptation (Hansen and Ostermeier 2001), which begins in the middle of the levels."""

    name = "cmaes"
    about = "Optuna's CMA-ES (pip install cmaes)"

    def sampler(self, seed: int) -> optuna.samplers.BaseSampler:
        return optuna.samplers.CmaEsSampler(seed=seed)
