"""What is searched for, and for how long."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from secateur.errors import UsageError, did_you_mean
from secateur.recipe.base import Settings, listed

MEASURES = ("params", "macs", "memory", "latency")
TARGETS = ("sparsity", "params", "macs")
REWARDS = ("kl", "perplexity", "accuracy")


def check_measures(
    known: Sequence[str], weigh: Mapping[str, float], limit: Mapping[str, float], front: Sequence[str] = ()
) -> None:
    """Raises UsageError if a measure is none of those that are known, or a limit is no share."""
    for measure in (*weigh, *limit, *front):
        if measure not in known:
            raise UsageError(f"search: unknown measure '{measure}'.{did_you_mean(measure, known)}")
    for measure, most in limit.items():
        if not 0 < most <= 1:
            raise UsageError(f"search: the limit of {measure} is a share of the dense model above 0, at most 1.")


class Search(Settings):
    """A search for how much goes from each place, under the target of the recipe's prune stage.

    Whichever of `trials` and `seconds` ends first ends the search; if neither is given, 200 candidates are judged.

    Attributes:
        strategy: Who proposes candidates (see secateur.automl.strategies).
        trials: Candidates that are judged, each evaluation counting, by all workers together.
        seconds: Wall time of judging, the level database aside.
        reward: What a candidate's quality is: minus its divergence from the dense model (`kl`), minus its loss on the
            calibration's text (`perplexity`), how often a classifier is right on `table` (`accuracy`), or a function
            (network, tokens) -> float of the user's own, more being better, by its import path `module:function`.
        table: A table of text and label.
        weigh: What is taken off the reward per measure, times the candidate's share of the dense model: `params`,
            `macs`, `memory` (weights, and the keys and values of a calibration window), `latency` (of reading such a
            window, from timings on this machine).
        limit: Shares of the dense model that a candidate may not exceed, per measure.
        front: Measures that are goals of their own beside the reward: of candidates that none beats by every goal the
            one is taken that gives up the least of each, and all are told.
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
    reward: str = "kl"
    table: str | None = None
    weigh: dict[str, float] = Field(default_factory=dict)
    limit: dict[str, float] = Field(default_factory=dict)
    front: tuple[str, ...] = ()
    tokens: tuple[int, ...] = (512, 2048, 8192)
    start: Literal["knapsack", "uniform"] = "knapsack"
    halves: bool = True
    losses: Literal["loss", "layer"] = "loss"
    level_solver: str = "sparsegpt"
    levels: str | None = None
    storage: str | None = None
    study: str = "secateur"

    @field_validator("weigh", "limit", mode="before")
    @classmethod
    def _by_measure(cls, given: Any) -> Any:
        """Takes `["macs=0.5"]` as the command line has it, too."""
        if not isinstance(given, list | tuple):
            return given
        pairs = [str(one).partition("=") for one in given]
        if wrong := next((one for one, (_, mark, _) in zip(given, pairs, strict=True) if not mark), None):
            raise UsageError(f"search: write a measure and a number such as macs=0.5, not '{wrong}'.")
        if len({name for name, _, _ in pairs}) < len(pairs):
            raise UsageError(f"search: a measure is given twice: {', '.join(map(str, given))}.")
        return {name: number for name, _, number in pairs}

    @model_validator(mode="after")
    def _consistent(self) -> Search:
        if not self.tokens or list(self.tokens) != sorted(set(self.tokens)) or self.tokens[0] < 2:
            raise UsageError("search: tokens are ascending numbers such as [512, 2048, 8192].")
        if self.reward not in REWARDS and ":" not in self.reward:
            raise UsageError(
                f"search: unknown reward '{self.reward}'.{did_you_mean(self.reward, REWARDS)} A function of your own "
                "is named as module:function."
            )
        if self.reward == "accuracy" and self.table is None:
            raise UsageError("search: reward 'accuracy' goes with a table of text and label; give it by --table.")
        if self.reward != "accuracy" and self.table is not None:
            raise UsageError(f"search: a table is for --reward accuracy, and the reward is '{self.reward}'.")
        check_measures(MEASURES, self.weigh, self.limit, self.front)
        if len(set(self.front)) < len(self.front):
            raise UsageError("search: front names a measure twice.")
        return self

    @property
    def most(self) -> int | None:
        """Candidates that are judged at most."""
        return 200 if self.trials is None and self.seconds is None else self.trials


def limited(options: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a search's options, in which the first target stays one and other measures limit what is found.

    Raises:
        UsageError: There is no target, or other measures beside one of single weights.
    """
    given = dict(options)
    there = [name for name in (*TARGETS, *MEASURES) if given.get(name) is not None]
    target = next((name for name in there if name in TARGETS), None)
    shares = [name for name in MEASURES if name in there and name != target]
    if target is None:
        bound = f" {listed(shares)} only bounds what is found." if shares else ""
        raise UsageError(f"search: give a target: --sparsity of single weights, or --params or --macs of units.{bound}")
    if not shares:
        return given
    if target == "sparsity":
        raise UsageError(
            f"search: {listed(shares)} is for a search over units; leave --sparsity out, or {listed(shares)}."
        )
    limit = given.get("limit") or []
    told = [f"{name}={share}" for name, share in limit.items()] if isinstance(limit, Mapping) else list(limit)
    given["limit"] = [*told, *(f"{name}={given.pop(name)}" for name in shares)]
    return given
