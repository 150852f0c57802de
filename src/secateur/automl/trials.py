"""How a candidate stands in Optuna's trials: a whole number for each place."""

from __future__ import annotations

from optuna.distributions import BaseDistribution, IntDistribution

from secateur.automl.space import Levels, Space


def distributions_of(space: Space) -> dict[str, BaseDistribution]:
    """Returns what each place's level is chosen from."""
    return {place.name: IntDistribution(0, len(place.costs) - 1) for place in space.places}


def params_of(space: Space, levels: Levels) -> dict[str, int]:
    """Returns a candidate's levels by the names of their places."""
    return {place.name: level for place, level in zip(space.places, levels, strict=True)}
