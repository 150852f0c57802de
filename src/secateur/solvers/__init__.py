"""Solvers: pure functions from (weights, statistics, mask or amount) to new weights; the registry."""

from __future__ import annotations

from secateur.errors import UsageError, did_you_mean
from secateur.solvers.base import Problem, Solution, Solver
from secateur.solvers.none import NoUpdate
from secateur.solvers.refit import Refit
from secateur.solvers.sparsegpt import SparseGPT

SOLVERS: dict[str, Solver] = {solver.name: solver for solver in (NoUpdate(), SparseGPT(), Refit())}


def solver_named(name: str) -> Solver:
    """Returns a registered solver.

    Raises:
        UsageError: There is none of this name.
    """
    if name not in SOLVERS:
        raise UsageError(f"unknown solver '{name}'.{did_you_mean(name, SOLVERS)}")
    return SOLVERS[name]


__all__ = ["SOLVERS", "Problem", "Solution", "Solver", "solver_named"]
