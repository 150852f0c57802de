"""A stage's target as a budget, and what each unit saves of it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from secateur.allocation.widths import Budget
from secateur.evaluation.costs import costs, unit_costs
from secateur.network.units import UnitGroup
from secateur.recipe import bytes_of
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
    name = next(name for name in SHARES if getattr(stage, name) is not None)
    what = SHARES[name]
    length = job.first.length
    now = getattr(costs(job.network, length), what)
    if name == "memory":
        assert stage.memory is not None
        limit = float(bytes_of(stage.memory))
    else:
        limit = getattr(stage, name) * getattr(job.first, what)
    budget = Budget(f"--{name} {getattr(stage, name)}", float(now), limit, UNITS[what])
    return budget, [unit_costs(group, what, length).double() for group in groups]
