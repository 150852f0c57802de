"""Candidates that no other one beats by every goal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

Goals = tuple[float, ...]
One = TypeVar("One")


def dominates(a: Goals, b: Goals) -> bool:
    """Whether goals, of which more is better, are nowhere worse and somewhere better."""
    return all(x >= y for x, y in zip(a, b, strict=True)) and a != b


def front_of(some: Sequence[tuple[Goals, One]]) -> list[tuple[Goals, One]]:
    """Returns those that none dominates, the first of equal ones, in their order."""
    seen: set[Goals] = set()
    found = []
    for goals, one in some:
        if goals not in seen and not any(dominates(other, goals) for other, _ in some):
            found.append((goals, one))
        seen.add(goals)
    return found


def knee(front: Sequence[tuple[Goals, One]]) -> One:
    """Returns the one of a front that is nearest to the best of everything, each goal scaled to the front's range."""
    columns = list(zip(*(goals for goals, _ in front), strict=True))
    best = [max(column) for column in columns]
    spread = [(max(column) - min(column)) or 1.0 for column in columns]

    def distance(goals: Goals) -> float:
        total: float = sum(
            ((top - x) / wide) * ((top - x) / wide) for x, top, wide in zip(goals, best, spread, strict=True)
        )
        return total

    return min(front, key=lambda pair: distance(pair[0]))[1]
