"""What a search chooses from: places, each at one of several levels, under one budget."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from secateur.errors import UsageError

Levels = tuple[int, ...]
EXCHANGED = 0.5  # share of switches that exchange levels, of places whose steps differ
TRIES = 2_000  # moves until a budget is met; from the middle on places that were to stay may move, too


@dataclass(frozen=True)
class Place:
    """A layer or a group of units, and the levels that it may stand at.

    Attributes:
        name: Its name in a stage's `amounts`.
        amounts: What goes at each level: weights or units, ascending.
        costs: What that takes off the budget, in the same whole numbers for all places.
        losses: What it was measured to cost in quality, on the dense model: the relative error, or the like.
        features: What a policy sees of it, each about between 0 and 1.
        saves: What each level takes off the model by other measures, such as `macs`.
    """

    name: str
    amounts: tuple[int, ...]
    costs: tuple[int, ...]
    losses: tuple[float, ...]
    features: tuple[float, ...] = ()
    saves: Mapping[str, tuple[float, ...]] = field(default_factory=dict)


class Space:
    """Places and a budget: candidates are levels, one per place, that take just as much off as is asked for.

    Attributes:
        places: The places.
        total: What has to go.
        slack: A candidate takes off at least `total`, and less than `total + slack`: the finest step that there is, or
            where costs don't add up the largest.
    """

    def __init__(
        self,
        places: Sequence[Place],
        total: int,
        together: Callable[[Sequence[int]], int] | None = None,
        dense: Mapping[str, float] | None = None,
        target: Callable[[int], str] = lambda cost: f"{cost:,}",
    ) -> None:
        """
        Args:
            places: The places.
            total: What has to go.
            together: What a candidate takes off, where that isn't the sum over the places: widths of layers that read
                each other multiply. The places' own costs are then those of each alone.
            dense: What the dense model has by each measure of which the places say what they save.
            target: What was asked for if so much has to go, in words such as `--params 0.7`.

        Raises:
            UsageError: The places can't give as much, or can't give as little.
        """
        self.places, self.total, self._together, self.dense = tuple(places), total, together, dict(dense or {})
        least, most = (self.cost([end * (len(place.costs) - 1) for place in self.places]) for end in (0, 1))
        if not least <= total <= most:
            raise UsageError(
                f"{target(total)} can't be met: the search's levels go from {target(least)} to {target(most)}."
            )
        steps = [b - a for place in self.places for a, b in pairwise(place.costs)]
        self.slack = min(steps) if together is None else max(steps)

    def __len__(self) -> int:
        return len(self.places)

    def cost(self, levels: Sequence[int]) -> int:
        """Returns what a candidate takes off."""
        if self._together is not None:
            return self._together(levels)
        return sum(place.costs[level] for place, level in zip(self.places, levels, strict=True))

    def shares(self, levels: Sequence[int]) -> dict[str, float]:
        """Returns what a candidate leaves by each measure, relative to the dense model."""
        stands = list(zip(self.places, levels, strict=True))
        return {
            measure: 1 - sum(place.saves[measure][level] for place, level in stands) / dense
            for measure, dense in self.dense.items()
        }

    def meets(self, levels: Sequence[int]) -> bool:
        """Whether a candidate meets the budget."""
        return 0 <= self.cost(levels) - self.total < self.slack

    def amounts(self, levels: Sequence[int]) -> dict[str, int]:
        """Returns what goes from each place that gives anything."""
        given = {place.name: place.amounts[level] for place, level in zip(self.places, levels, strict=True)}
        return {name: amount for name, amount in given.items() if amount}

    def settled(self, levels: Sequence[int], random: np.random.Generator, fixed: Collection[int] = ()) -> Levels:
        """Moves places drawn at random, level by level, until the budget is met, and no place could give less.

        Args:
            levels: Where they stand.
            random: Draws them.
            fixed: Places that stay, as long as the others can make up for them.

        Raises:
            UsageError: The budget can't be met.
        """
        found = [min(max(level, 0), len(place.costs) - 1) for place, level in zip(self.places, levels, strict=True)]
        held = set(fixed)
        over = self.cost(found) - self.total
        for move in range(TRIES):
            held = set() if move == TRIES // 2 else held
            if 0 <= over < self.slack:
                return tuple(found if self._together is None else self._filled(found, random, held))
            up = over < 0
            moves = self._moves(found, 1 if up else -1, held)
            if not moves:
                if not held:
                    break
                held = set()
                continue
            fitting = [(at, change) for at, change in moves if (change < self.slack - over if up else change <= over)]
            at, change = (fitting or moves)[random.integers(len(fitting or moves))]
            found[at] += 1 if up else -1
            over = self.cost(found) - self.total if self._together else over + (change if up else -change)
        raise UsageError(f"no combination of the search's levels takes off {self.total:,}; give it finer levels.")

    def switched(self, levels: Sequence[int], random: np.random.Generator, number: int) -> Levels:
        """Returns a candidate after some level switches, settled.

        A switch moves a place drawn at random by a level, and another one by as much the other way; if none can,
        whichever places fit make up for it. Where a place's steps differ in size, as where a last one takes a whole
        half of a layer, half of the switches exchange the levels of two places.

        Args:
            levels: The candidate.
            random: Draws the places.
            number: How many switches.
        """
        found, moved = list(levels), set[int]()
        for _ in range(number):
            at, way = int(random.integers(len(found))), 1 if random.random() < 0.5 else -1
            costs = self.places[at].costs
            if len({b - a for a, b in pairwise(costs)}) > 1 and random.random() < EXCHANGED:
                alike = [n for n, place in enumerate(self.places) if place.costs == costs and found[n] != found[at]]
                if alike:
                    other = alike[random.integers(len(alike))]
                    found[at], found[other] = found[other], found[at]
                    moved |= {at, other}
                    continue
            way = way if 0 <= found[at] + way < len(costs) else -way
            if not 0 <= found[at] + way < len(costs):
                continue
            change = abs(costs[found[at] + way] - costs[found[at]])
            found[at] += way
            moved.add(at)
            partners = [other for other, step in self._moves(found, -way, moved) if step == change]
            if partners:
                partner = partners[random.integers(len(partners))]
                found[partner] -= way
                moved.add(partner)
        return self.settled(found, random, moved)

    def _filled(self, levels: list[int], random: np.random.Generator, held: set[int]) -> list[int]:
        """Lowers places drawn at random, level by level, as long as the budget is met: costs don't add up."""
        able = [at for at in range(len(levels)) if at not in held]
        while able:
            at = able[random.integers(len(able))]
            lower = [level - (place == at) for place, level in enumerate(levels)]
            if lower[at] >= 0 and self.cost(lower) >= self.total:
                levels = lower
            else:
                able.remove(at)
        return levels

    def _moves(self, levels: Sequence[int], way: int, held: set[int]) -> list[tuple[int, int]]:
        """Returns which places can go a level up or down, and what that changes."""
        moves = []
        for at, (place, level) in enumerate(zip(self.places, levels, strict=True)):
            to = level + way
            if at not in held and 0 <= to < len(place.costs):
                moves.append((at, abs(place.costs[to] - place.costs[level])))
        return moves

    def knapsack(self) -> Levels:
        """Returns where the measured losses grow least: single steps in the order of loss per cost, then settled."""
        levels = [0] * len(self.places)
        while self.cost(levels) < self.total:
            rises = [
                ((place.losses[level + 1] - place.losses[level]) / (place.costs[level + 1] - place.costs[level]), at)
                for at, (place, level) in enumerate(zip(self.places, levels, strict=True))
                if level + 1 < len(place.costs)
            ]
            levels[min(rises)[1]] += 1
        return self.settled(levels, np.random.default_rng(0))

    def uniform(self) -> Levels:
        """Returns where all places give about the same share of what they could."""
        low, high = 0.0, 1.0
        for _ in range(30):
            share = (low + high) / 2
            low, high = (share, high) if self.cost(self._shared(share)) < self.total else (low, share)
        return self.settled(self._shared(high), np.random.default_rng(0))

    def _shared(self, share: float) -> list[int]:
        """Returns the level of each place that is nearest to a share of the most that it can give."""
        return [
            min(range(len(place.amounts)), key=lambda level: abs(place.amounts[level] - share * place.amounts[-1]))
            for place in self.places
        ]
