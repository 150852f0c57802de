"""Which units stay, by their scores."""

from __future__ import annotations

import torch
from torch import Tensor

from secateur.allocation.amounts import Threshold
from secateur.errors import UsageError
from secateur.network.unit_group import UnitGroup
from secateur.structure.job import Job


def kept_by_score(scores: Tensor, left: int | None, threshold: str | None, job: Job, group: UnitGroup) -> Tensor:
    """Returns (units,) bool: the `left` best units, or those that reach a threshold. Ties go by position.

    Raises:
        UsageError: The threshold takes more than the group may give.
    """
    scores = scores.cpu()
    if left is None:
        assert threshold is not None
        free = scores[scores.isfinite()]  # protected units are infinite
        if not len(free):
            raise UsageError("--protect-first and --protect-last leave no block to prune.")
        keep = scores >= Threshold.parse(threshold).value(free)
        least = max(1, job.stage.min_units)
        if int(keep.sum()) < least:
            raise UsageError(
                f"--threshold {threshold} leaves {int(keep.sum())} of the {group.count} units of {group.name}, and at "
                f"least {least} have to stay; their scores lie between {float(free.min()):.4g} and "
                f"{float(free.max()):.4g}."
            )
        return keep
    keep = torch.zeros(len(scores), dtype=torch.bool)
    keep[scores.sort(descending=True, stable=True).indices[:left]] = True
    return keep
