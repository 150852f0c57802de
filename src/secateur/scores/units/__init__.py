"""Scores of units. One file per family of scores; the registry below is what recipes and tests go by."""

from __future__ import annotations

from torch import Tensor

from secateur.errors import UsageError, did_you_mean
from secateur.network.unit_group import UnitGroup
from secateur.scores.l1 import L1
from secateur.scores.l2 import L2
from secateur.scores.mean_abs import MeanAbs
from secateur.scores.random import Random
from secateur.scores.unit_score import UnitScore, UnitStatistics, checked
from secateur.scores.units.activation import Activation, MeanActivation
from secateur.scores.units.apoz import Apoz
from secateur.scores.units.bn_scale import BnScale
from secateur.scores.units.correlation import Correlation
from secateur.scores.units.coupled import COMBINE, Coupled
from secateur.scores.units.entropy import Entropy
from secateur.scores.units.flap import Flap
from secateur.scores.units.fpgm import Fpgm
from secateur.scores.units.frequency import Frequency
from secateur.scores.units.gradients import Fisher, Snip, Taylor
from secateur.scores.units.influence import BlockInfluence, LeaveOneOut
from secateur.scores.units.obs import Obs
from secateur.scores.units.own import own_score
from secateur.scores.units.reap import Reap
from secateur.scores.units.ria import Ria
from secateur.scores.units.wanda import Wanda
from secateur.scores.variance import Variance

DATA_FREE = {score.name: score for score in (L1(), L2(), MeanAbs(), Variance(), Random())}

UNIT_SCORES: dict[str, UnitScore] = {
    score.name: score
    for score in (
        *map(Coupled, DATA_FREE.values()),
        *(Wanda(), Activation(), MeanActivation(), Flap(), Apoz(), Entropy(), Correlation(), Obs(), Ria()),
        *(Taylor(), Snip(), Fisher()),
        *(BnScale(), Fpgm()),
        *(BlockInfluence(), LeaveOneOut(), Reap(), Frequency()),
    )
}


def unit_score_named(name: str, combine: str = "sum") -> UnitScore:
    """Returns a registered score, or the user's own function by its import path.

    Args:
        name: Of a score; or `module:function`, or `path/to/file.py:function`.
        combine: How a data-free score puts a unit's coupled tensors together: `sum`, `mean` or `max`.

    Raises:
        UsageError: There is none of this name, or it doesn't combine.
    """
    if name in DATA_FREE:
        return Coupled(DATA_FREE[name], combine)
    if combine != "sum":
        known = did_you_mean(combine, COMBINE) if combine not in COMBINE else ""
        raise UsageError(f"combine '{combine}' goes with {', '.join(DATA_FREE)} only, not with '{name}'.{known}")
    if name in UNIT_SCORES:
        return UNIT_SCORES[name]
    if ":" in name:
        return own_score(name)
    raise UsageError(
        f"unknown score '{name}' of units.{did_you_mean(name, UNIT_SCORES)} "
        "A function of your own is module:function or path/to/file.py:function."
    )


def check_fit(score: UnitScore, unit: str) -> None:
    """Raises UsageError if a score doesn't fit a kind of unit."""
    if unit not in score.fits:
        fitting = sorted(name for name, one in UNIT_SCORES.items() if unit in one.fits)
        raise UsageError(
            f"the score '{score.name}' doesn't fit units of the kind '{unit}', only {', '.join(sorted(score.fits))}. "
            f"Scores that fit '{unit}': {', '.join(fitting)}."
        )


def scored(score: UnitScore, group: UnitGroup, statistics: UnitStatistics) -> Tensor:
    """Returns (units,) float32 on the CPU: a score's values for a group, checked.

    Raises:
        UsageError: The score doesn't fit this kind of unit.
        ScoreError: What came out can't be used.
    """
    check_fit(score, group.unit)
    return checked(score.score(group, statistics), group, score.name)


__all__ = [
    "UNIT_SCORES",
    "UnitScore",
    "UnitStatistics",
    "check_fit",
    "checked",
    "scored",
    "unit_score_named",
]
