"""What is searched for, and for how long."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from secateur.errors import UsageError
from secateur.recipe.base import Settings


class Search(Settings):
    """A search for how much goes from each place, under the target of the recipe's prune stage.

    Whichever of `trials` and `seconds` ends first ends the search; if neither is given, 200 candidates are judged.

    Attributes:
        strategy: Who proposes candidates (see secateur.automl.strategies).
        trials: Candidates that are judged, each evaluation counting, by all workers together.
        seconds: Wall time of judging, the level database aside.
        tokens: Tokens that candidates are judged on, ascending: many on the fewest, the best on more.
        start: `knapsack`, which goes by the measured losses of single places, or `uniform`.
        halves: Whether whole halves of layers may go, too, where neurons are removed.
        losses: What a place's level costs, by which the knapsack goes: `loss` weighs the errors of a layer's outputs by
            what they add to the next-token loss (one pass back through the model), `layer` takes its relative error.
        level_solver: What the level database is solved by; the stage's own solver then solves the winner.
        levels: Folder of level databases, which later searches use again; None keeps it beside the output.
        storage: Of Optuna's study, where several workers find it: `postgresql://...`; None is study.db in the output.
        study: The study's name there.
    """

    strategy: str = "evolution"
    trials: int | None = Field(default=None, ge=1)
    seconds: float | None = Field(default=None, gt=0)
    tokens: tuple[int, ...] = (512, 2048, 8192)
    start: Literal["knapsack", "uniform"] = "knapsack"
    halves: bool = True
    losses: Literal["loss", "layer"] = "loss"
    level_solver: str = "sparsegpt"
    levels: str | None = None
    storage: str | None = None
    study: str = "secateur"

    @model_validator(mode="after")
    def _consistent(self) -> Search:
        if not self.tokens or list(self.tokens) != sorted(set(self.tokens)) or self.tokens[0] < 2:
            raise UsageError("search: tokens are ascending numbers such as [512, 2048, 8192].")
        return self

    @property
    def most(self) -> int | None:
        """Candidates that are judged at most."""
        return 200 if self.trials is None and self.seconds is None else self.trials
