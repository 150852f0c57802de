"""What a recipe with open choices is searched by, and for how long."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from secateur.errors import UsageError, did_you_mean
from secateur.recipe.base import Settings
from secateur.recipe.data import Evaluate
from secateur.recipe.search import check_measures

MEASURES = ("params", "macs")
QUALITIES = ("accuracy", "kl", "perplexity", "loss")


class Choosing(Settings):
    """A search over the choices that a recipe leaves open.

    Attributes:
        strategy: Optuna's sampler: `tpe`, `random`, `nsga2` or `cmaes`.
        trials: Recipes that are carried out at most; 30 if no seconds are given either.
        seconds: Wall time at most; the recipe that has begun is ended first.
        reward: What a recipe's outcome is worth: `accuracy`, minus `kl`, minus the logarithm of the `perplexity`, minus
            `loss`, or a function (result) -> float of the user's own by its import path; None takes the accuracy of
            classifiers and minus the divergence of others.
        weigh: What is taken off the reward per measure, times the outcome's share of the dense model.
        limit: Shares of the dense model that an outcome may not exceed.
        budgets: Shares of the stages' training (or of the calibration, where nothing trains) on which a recipe is tried
            first, ascending, the whole being the last: a recipe that does worse than half of the others did at the same
            share is ended there.
        judge: What is measured on while searching; None takes what the calibration holds back.
        storage: Of Optuna's study; None is study.db in the output.
        study: The study's name there.
    """

    strategy: Literal["tpe", "random", "nsga2", "cmaes"] = "tpe"
    trials: int | None = Field(default=None, ge=1)
    seconds: float | None = Field(default=None, gt=0)
    reward: str | None = None
    weigh: dict[str, float] = Field(default_factory=dict)
    limit: dict[str, float] = Field(default_factory=dict)
    budgets: tuple[float, ...] = (0.25, 1.0)
    judge: Evaluate | None = None
    storage: str | None = None
    study: str = "secateur"

    @model_validator(mode="after")
    def _consistent(self) -> Choosing:
        if not self.budgets or list(self.budgets) != sorted(set(self.budgets)) or self.budgets[-1] != 1:
            raise UsageError("search: budgets are ascending shares whose last is 1, such as [0.25, 1].")
        if self.budgets[0] <= 0:
            raise UsageError("search: budgets are shares above 0.")
        check_measures(MEASURES, self.weigh, self.limit)
        if self.reward is not None and self.reward not in QUALITIES and ":" not in self.reward:
            raise UsageError(f"search: unknown reward '{self.reward}'.{did_you_mean(self.reward, QUALITIES)}")
        return self
