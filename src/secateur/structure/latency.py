"""How long this machine takes: a table of timings at several widths, and what each unit saves of them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from statistics import median

import torch
from torch import Tensor

from secateur.allocation.widths import Budget
from secateur.calibration.inputs import model_inputs
from secateur.calibration.windows import Windows
from secateur.errors import UsageError
from secateur.network.network import Network
from secateur.network.surgery import Cut, cut
from secateur.network.unit_group import UnitGroup
from secateur.structure.job import Job

REPEATS = 7
LEAST_WIDTH = 0.5  # the smaller of the two widths that are timed, relative to what is there


def latency_costs(job: Job, groups: Sequence[UnitGroup]) -> tuple[Budget, list[Tensor]]:
    """Returns the budget of `--latency` in milliseconds, and by group what goes with each unit.

    Timed is the reading of one calibration window by the model with all of its units and with half of them, by turns:
    what a unit saves is taken to be the same in every block.
    """
    assert job.stage.latency is not None
    if job.windows is None:
        raise UsageError("--latency is measured on a calibration window; give --calibration.")
    window = job.windows.one(0)
    kinds = {group.unit for group in groups}
    with job.timed("latency"):
        whole, saved = unit_seconds(job.network, groups, window)
    for kind, gain in saved.items():
        if gain <= 0:
            raise UsageError(
                f"--latency: on this machine a model with half of its units of the kind '{kind}' isn't faster, so no "
                "number of them meets the target; remove other units, or give --params."
            )
    budget = Budget(f"--latency {job.stage.latency:g}", 1e3 * whole, 1e3 * whole * job.stage.latency, "ms per window")
    each = {kind: 1e3 * saved[kind] for kind in kinds}
    return budget, [torch.full((group.count,), each[group.unit], dtype=torch.float64) for group in groups]


def unit_seconds(network: Network, groups: Sequence[UnitGroup], window: Windows) -> tuple[float, dict[str, float]]:
    """Returns the seconds that a window takes, and by kind of unit the seconds that one unit saves (below 0: costs)."""
    smaller: dict[str, tuple[Network, int]] = {}
    for kind in {group.unit for group in groups}:
        some = [group for group in groups if group.unit == kind]
        cuts = [Cut(group, _half(group)) for group in some]
        removed = sum(one.group.count - one.left for one in cuts)
        smaller[kind] = (cut(network, cuts), removed)
    models = {"": network.model, **{kind: one.model for kind, (one, _) in smaller.items()}}
    first, others = model_inputs(network, window)
    times: dict[str, list[float]] = {name: [] for name in models}
    with torch.inference_mode():
        for turn in range(REPEATS + 1):
            for name, model in models.items():
                start = time.perf_counter()
                model(first, **others)
                if turn:  # the first turn warms up
                    times[name].append(time.perf_counter() - start)
    whole = median(times[""])
    saved = {}
    for kind, (_, removed) in smaller.items():
        saved[kind] = median(a - b for a, b in zip(times[""], times[kind], strict=True)) / removed
    return whole, saved


def _half(group: UnitGroup) -> Tensor:
    keep = torch.ones(group.count, dtype=torch.bool)
    keep[max(1, int(group.count * LEAST_WIDTH)) :] = False
    return keep
