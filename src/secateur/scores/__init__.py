"""Scores: how important a weight is. One file each; the registry below is what recipes and tests go by."""

from __future__ import annotations

from secateur.errors import UsageError, did_you_mean
from secateur.scores.base import Score
from secateur.scores.fisher import Fisher
from secateur.scores.l1 import L1
from secateur.scores.l2 import L2
from secateur.scores.mean_abs import MeanAbs
from secateur.scores.obs import Obs
from secateur.scores.random import Random
from secateur.scores.ria import Ria
from secateur.scores.snip import Snip
from secateur.scores.taylor import Taylor
from secateur.scores.variance import Variance
from secateur.scores.wanda import Wanda

SCORES: dict[str, Score] = {
    score.name: score
    for score in (
        *(L1(), L2(), MeanAbs(), Variance(), Random(), Wanda(), Ria(), Obs()),
        *(Taylor(), Fisher(), Snip()),
    )
}


def score_named(name: str) -> Score:
    """Returns a registered score.

    Raises:
        UsageError: There is none of this name.
    """
    if name not in SCORES:
        own = " A function of your own scores units, not single weights." if ":" in name else ""
        of_weights = [known for known in SCORES if known != Variance.name]
        raise UsageError(f"unknown score '{name}' of weights.{own}{did_you_mean(name, of_weights)}")
    return SCORES[name]


__all__ = ["SCORES", "Score", "score_named"]
