"""How many neurons and heads each group keeps, by the stage's target."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from math import lcm

import torch
from torch import Tensor

from secateur.allocation.widths import Budget, Place, cost_of, even_widths, least_width, ramp, ranked_widths
from secateur.calibration.statistics import Needs
from secateur.errors import UsageError
from secateur.layer_choice import amounts_of
from secateur.network.unit_group import UnitGroup
from secateur.scores.units import scored
from secateur.solvers.removal import elimination
from secateur.structure.budget import budget_of
from secateur.structure.dense import on_the_dense_model
from secateur.structure.fitting import damping_of, weighed, weights_of
from secateur.structure.job import Job

PLAN_ROUNDS = 32
ALIGNED = 8  # widths of experts are multiples of it: the product of all experts at once takes aligned rows only


def inner_widths(job: Job, groups: Sequence[UnitGroup]) -> dict[str, int] | None:
    """Returns how many units each group keeps, by name; None where a threshold decides group by group."""
    stage = job.stage
    if stage.threshold is not None:
        return None
    if stage.amounts is not None:
        most = {group.name: group.count - max(1, stage.min_units) for group in groups}
        gone = amounts_of(stage.amounts, most, "group of units")
        return {group.name: group.count - gone[group.name] for group in groups}
    if stage.remove is not None or (stage.sparsity is not None and stage.allocation == "uniform"):
        return {group.name: _own_width(job, group) for group in groups}
    budget, each = budget_of(job, groups)
    mixed, step = len(stage.kinds) > 1, step_of(job, groups)
    values: list[tuple[float, ...]] = [()] * len(groups)
    if stage.allocation in ("global", "error") or mixed:
        values = _values(job, groups, each)
    places = [
        Place(group.name, group.count, float(cost.mean()), least_width(group.count, stage.min_units, step), value)
        for group, cost, value in zip(groups, each, values, strict=True)
    ]
    if stage.allocation == "ramp":
        widths = _ramped(job, groups, places, budget)
    elif stage.allocation == "uniform" and not mixed:
        widths = even_widths(places, budget, step_of(job, groups))
    else:
        widths = ranked_widths(places, budget, step_of(job, groups))
    if stage.uniform or (mixed and stage.allocation == "uniform"):
        widths = _evened(job, groups, widths, places, budget)
    return {group.name: width for group, width in zip(groups, widths, strict=True)}


def note_widths(job: Job, groups: Sequence[UnitGroup], counts: Mapping[str, int] | None) -> None:
    """Notes what the user may not expect of the widths."""
    if (step := step_of(job, groups)) > job.stage.round_to:
        job.notes.append(f"Widths of experts are multiples of {step}: the product of all experts takes no others.")
    if counts is None or len(job.stage.kinds) == 1:
        return
    least = max(1, job.stage.min_units)
    for kind in job.stage.kinds:
        some = [group for group in groups if group.unit == kind]
        if any(counts[group.name] <= least < group.count for group in some):
            job.notes.append(f"Units of the kind '{kind}' went down to the least that is allowed ({least}) somewhere.")


def step_of(job: Job, groups: Sequence[UnitGroup]) -> int:
    """Returns what widths are a multiple of."""
    experts = any(reader.layer.expert is not None for group in groups for reader in group.readers)
    return lcm(job.stage.round_to, ALIGNED) if experts else job.stage.round_to


def _own_width(job: Job, group: UnitGroup) -> int:
    """Returns a group's width where its share or its number is its own: `sparsity` and `remove`."""
    stage = job.stage
    gone = stage.remove if stage.remove is not None else round(group.count * (stage.sparsity or 0))
    step = step_of(job, [group])
    width = (group.count - gone) // step * step
    least = max(1, stage.min_units)
    if width < least:
        fewest = -(-least // step) * step
        rounded = f" (a multiple of {step})" if step > 1 else ""
        advice = f"Remove {group.count - fewest} at most." if fewest < group.count else "No number of them can go."
        raise UsageError(
            f"{group.name} has {group.count} units: removing {gone} of them leaves {max(width, 0)}{rounded}, and at "
            f"least {least} have to stay. {advice}"
        )
    return width


def _evened(
    job: Job, groups: Sequence[UnitGroup], widths: Sequence[int], places: Sequence[Place], budget: Budget
) -> list[int]:
    """Gives all groups of a kind their mean width, rounded down, and then what is left of the budget, dearest first."""
    total: dict[str, list[int]] = defaultdict(list)
    for group, width in zip(groups, widths, strict=True):
        total[group.unit].append(width)
    step = step_of(job, groups)
    most = {kind: max(group.count for group in groups if group.unit == kind) for kind in total}
    least = {kind: least_width(count, job.stage.min_units, step) for kind, count in most.items()}
    even = {kind: max(least[kind], sum(w) // len(w) // step * step) for kind, w in total.items()}

    def kept(even: dict[str, int]) -> list[int]:
        return [min(group.count, even[group.unit]) for group in groups]

    each = {group.unit: place.cost for group, place in zip(groups, places, strict=True)}
    for kind in sorted(even, key=lambda kind: -each[kind]):
        for width in range(even[kind] + step, most[kind] + step, step):
            wider = {**even, kind: width}
            if cost_of(places, kept(wider), budget) > budget.limit:
                break
            even = wider
    return kept(even)


def _ramped(job: Job, groups: Sequence[UnitGroup], places: Sequence[Place], budget: Budget) -> list[int]:
    """Removes more from later blocks: by a common factor on the ramp, the least that meets the budget."""
    blocks = sorted({group.block for group in groups if group.block is not None})
    shares = dict(zip(blocks, ramp(len(blocks)), strict=True))
    step = step_of(job, groups)

    def kept(factor: float) -> list[int]:
        return [
            max(place.least, int(place.count * (1 - min(1.0, factor * shares[group.block or 0]))) // step * step)
            for group, place in zip(groups, places, strict=True)
        ]

    def cost(widths: Sequence[int]) -> float:
        return budget.now - sum((p.count - w) * p.cost for p, w in zip(places, widths, strict=True))

    low, high = 0.0, 1 / min(shares.values())
    if cost(kept(high)) > budget.limit:
        even_widths(places, budget, step)  # says what is the nearest
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (low, middle) if cost(kept(middle)) <= budget.limit else (middle, high)
    return kept(high)


def _values(job: Job, groups: Sequence[UnitGroup], costs: Sequence[Tensor]) -> list[tuple[float, ...]]:
    """Returns what each group's removals cost in quality, in the order in which they would go, from the dense model.

    Kinds whose values are on different scales are brought to the same mean per parameter, or what the target counts.

    Args:
        job: The stage's work.
        groups: The groups.
        costs: (units,) by group: what goes with each unit.
    """
    by_error = job.stage.allocation == "error" or job.stage.solver == "obs"
    if by_error and any(len(group.readers) > 1 for group in groups):
        if len(job.stage.kinds) > 1:
            raise UsageError(
                "the neurons of experts have no error that could be held against that of heads: remove them in two "
                "stages, or give --solver none with a --score."
            )
        raise UsageError("the neurons of experts share one budget evenly; leave --allocation out.")
    found: dict[str, Tensor] = {}
    for group, inputs in on_the_dense_model(job, groups, Needs.GRAM if by_error else job.score.needs):
        with job.timed("plan"):
            if by_error:
                (reader,) = group.readers
                W = weighed(job, reader.layer, weights_of(job, reader.layer)[0])
                most = group.count - max(1, job.stage.min_units)
                G = inputs[reader.layer.reads].G
                path = elimination(W, G, reader.index, most, damping_of(job), PLAN_ROUNDS)
                relative = job.stage.allocation == "error" and not job.sensitivity and path.energy > 0
                found[group.name] = path.losses / (path.energy if relative else 1.0)
            else:
                scores = scored(job.score, group, job.statistics(group, inputs))
                found[group.name] = scores.sort().values.double()
    for kind in {group.unit for group in groups}:
        if job.stage.allocation != "error" and not job.sensitivity:
            some = [(group.name, cost) for group, cost in zip(groups, costs, strict=True) if group.unit == kind]
            mean = float(torch.cat([found[name] for name, _ in some]).mean())
            each = float(torch.cat([cost for _, cost in some]).mean())
            for name, _ in some:
                found[name] = found[name] * each / (mean or 1.0)
    return [tuple(found[group.name].tolist()) for group in groups]
