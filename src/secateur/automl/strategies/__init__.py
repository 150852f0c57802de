"""Strategies of the search, by name."""

from __future__ import annotations

from secateur.automl.strategies.annealing import Annealing
from secateur.automl.strategies.base import Judged, Proposal, Strategy
from secateur.automl.strategies.evolution import Evolution
from secateur.automl.strategies.policy import Policy
from secateur.automl.strategies.random import Random
from secateur.automl.strategies.sampled import CmaEs, Nsga2, Tpe
from secateur.errors import UsageError, did_you_mean

STRATEGIES: dict[str, type[Strategy]] = {
    kind.name: kind for kind in (Evolution, Policy, Annealing, Random, Tpe, Nsga2, CmaEs)
}


def strategy_named(name: str) -> type[Strategy]:
    """Returns a strategy.

    Raises:
        UsageError: There is none of this name.
    """
    if name not in STRATEGIES:
        raise UsageError(f"unknown strategy '{name}'.{did_you_mean(name, STRATEGIES)}")
    return STRATEGIES[name]


__all__ = ["STRATEGIES", "Judged", "Proposal", "Strategy", "strategy_named"]
