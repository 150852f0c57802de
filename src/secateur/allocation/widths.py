"""From a budget to the number of units that every group keeps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from secateur.errors import NothingPrunedError, UsageError


@dataclass(frozen=True)
class Place:
    """A group as the budget sees it.

    Attributes:
        name: For errors.
        count: Its units.
        cost: What goes with each unit.
        least: Units that it keeps at least.
        values: What each removal costs in quality, in the order in which units go: ascending; empty where the budget is
            shared out evenly.
    """

    name: str
    count: int
    cost: float
    least: int
    values: tuple[float, ...] = ()


@dataclass(frozen=True)
class Budget:
    """What may be left.

    Attributes:
        words: What was asked for, in words.
        now: What the model costs now.
        limit: What it may cost.
        unit: Of both, for errors: `parameters`, `bytes` ...
    """

    words: str
    now: float
    limit: float
    unit: str

    def text(self, value: float) -> str:
        """Writes what something costs, without the unit."""
        return f"{value:.3g}" if value < 1000 else f"{value:,.0f}"


def least_width(count: int, min_units: int, round_to: int) -> int:
    """Returns how many of `count` units stay at least: a multiple of `round_to`, or all that there are."""
    return min(count, -(-max(1, min_units) // round_to) * round_to)


def even_widths(places: Sequence[Place], budget: Budget, round_to: int = 1) -> list[int]:
    """Returns how many units each group keeps if all keep the same share: the largest that the budget allows.

    Raises:
        UsageError: Even the least widths cost more than the budget; the message says the nearest that can be met.
        NothingPrunedError: The budget leaves everything as it is.
    """
    _check(budget)
    largest = max(place.count for place in places)
    steps = [width for width in range(largest + 1) if width % round_to == 0 or width == largest]

    def kept(width: int) -> list[int]:
        return [
            place.count
            if width == largest
            else min(place.count, max(place.least, _rounded(place.count * width / largest, round_to)))
            for place in places
        ]

    low, high = 0, len(steps) - 1  # the answer is the highest step within the budget
    if cost_of(places, kept(steps[0]), budget) > budget.limit:
        raise _unreachable(places, kept(steps[0]), budget)
    while low < high:
        middle = (low + high + 1) // 2
        if cost_of(places, kept(steps[middle]), budget) <= budget.limit:
            low = middle
        else:
            high = middle - 1
    return kept(steps[low])


def ranked_widths(places: Sequence[Place], budget: Budget, round_to: int = 1) -> list[int]:
    """Returns how many units each group keeps if those go that cost least quality for what they save.

    Raises:
        UsageError, NothingPrunedError: As for `even_widths`.
    """
    _check(budget)
    value = np.concatenate([np.asarray(p.values[: p.count - p.least], dtype=float) / p.cost for p in places])
    owner = np.concatenate([np.full(max(0, p.count - p.least), n) for n, p in enumerate(places)])
    order = owner[np.argsort(value, kind="stable")]

    def kept(first: int) -> list[int]:
        gone = np.bincount(order[:first], minlength=len(places))
        return [
            place.count if not lost else max(place.least, _rounded(place.count - int(lost), round_to))
            for place, lost in zip(places, gone, strict=True)
        ]

    if cost_of(places, kept(len(order)), budget) > budget.limit:
        raise _unreachable(places, kept(len(order)), budget)
    low, high = 0, len(order)  # the fewest removals within the budget
    while low < high:
        middle = (low + high) // 2
        if cost_of(places, kept(middle), budget) <= budget.limit:
            high = middle
        else:
            low = middle + 1
    return kept(low)


def ramp(layers: int) -> list[float]:
    """Returns how much of the removal each layer takes, relative to the mean: rising with the logarithm of its place.

    The first layer takes least (SlimGPT, Ling et al. 2024, arXiv 2412.18110, eq. 9, for a removal that rises).
    """
    raw = [math.log(1 + place) for place in range(1, layers + 1)]
    mean = sum(raw) / layers
    return [one / mean for one in raw]


def _rounded(width: float, round_to: int) -> int:
    """Rounds down, so that a budget that is met stays met; a share that is whole but for rounding counts as whole."""
    return int(width + 1e-9) // round_to * round_to


def cost_of(places: Sequence[Place], kept: Sequence[int], budget: Budget) -> float:
    """Returns what the model costs if each place keeps so many units."""
    return budget.now - sum((p.count - k) * p.cost for p, k in zip(places, kept, strict=True))


def _check(budget: Budget) -> None:
    if budget.limit >= budget.now:
        raise NothingPrunedError(
            f"nothing was pruned: {budget.words} allows {budget.text(budget.limit)} {budget.unit}, and the model has "
            f"{budget.now:,.0f}. Ask for less."
        )


def _unreachable(places: Sequence[Place], kept: Sequence[int], budget: Budget) -> UsageError:
    nearest = cost_of(places, kept, budget)
    asked, left = f"{budget.text(budget.limit)} {budget.unit}", budget.text(nearest)
    return UsageError(
        f"{budget.words} can't be met by these units: {asked} were asked for, and at least {left} are left "
        f"({nearest / budget.now:.3f} of what is there now) when every group keeps its least. "
        "Let more stay, lower --min-units or --round-to, or remove other units, too."
    )
