"""A stage's target as a budget, and what each unit saves of it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from secateur.allocation.widths import Budget
from secateur.evaluation.costs import Costs, costs, unit_costs
from secateur.network.unit_group import UnitGroup
from secateur.recipe import Prune, bytes_of
from secateur.structure.job import Job
from secateur.structure.latency import latency_costs

SHARES = {"params": "parameters", "macs": "macs", "memory": "bytes"}
UNITS = {"parameters": "parameters", "macs": "multiply-accumulates per token", "bytes": "bytes"}


def budget_of(job: Job, groups: Sequence[UnitGroup]) -> tuple[Budget, list[Tensor]]:
    """Returns the budget that a stage's target stands for, and by group what goes with each unit: (units,) float64.

    The target is `params`, `macs`, `memory`, `latency`, `sparsity` or `remove`.
    """
    stage = job.stage
    if stage.latency is not None:
        return latency_costs(job, groups)
    if stage.sparsity is not None or stage.remove is not None:
        total = float(sum(group.count for group in groups))
        left = total * (1 - stage.sparsity) if stage.sparsity is not None else total - stage.remove  # type: ignore[operator]
        words = f"--sparsity {stage.sparsity:g}" if stage.sparsity is not None else f"--remove {stage.remove}"
        return Budget(words, total, left, "units"), [torch.ones(group.count, dtype=torch.float64) for group in groups]
    length = job.first.length
    what = SHARES[share_named(stage)]
    budget = share_of(stage, job.first, costs(job.network, length))
    return budget, [unit_costs(group, what, length).double() for group in groups]


def share_of(stage: Prune, first: Costs, now: Costs) -> Budget:
    """Returns the budget of `params`, `macs` or `memory`.

    Args:
        stage: What was asked for.
        first: What the run's first model costs, which shares are shares of.
        now: What the model costs now.
    """
    name = share_named(stage)
    what = SHARES[name]
    limit = bytes_of(stage.memory) if stage.memory is not None else getattr(stage, name) * getattr(first, what)
    return Budget(f"--{name} {getattr(stage, name)}", float(getattr(now, what)), float(limit), UNITS[what])


def share_named(stage: Prune) -> str:
    """Returns which of `params`, `macs` and `memory` a stage names."""
    return next(name for name in SHARES if getattr(stage, name) is not None)
