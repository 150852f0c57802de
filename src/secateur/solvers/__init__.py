"""Solvers: pure functions from (weights, statistics, mask or amount) to new weights; the registry."""

from __future__ import annotations

from secateur.errors import UsageError, did_you_mean
from secateur.solvers.admm import Admm
from secateur.solvers.alps import Alps
from secateur.solvers.base import Problem, Solution, Solver
from secateur.solvers.chain import Step, check_chain, needs_of_chain, solve_chain
from secateur.solvers.dsnot import DSnoT
from secateur.solvers.none import NoUpdate
from secateur.solvers.refit import Refit
from secateur.solvers.sparsegpt import SparseGPT
from secateur.solvers.swap import Swap

SOLVERS: dict[str, Solver] = {
    solver.name: solver for solver in (NoUpdate(), SparseGPT(), Admm(), Alps(), Refit(), Swap(), DSnoT())
}

# What `auto` stands for, without a score and on a score's mask.
AUTO = "admm"
AUTO_MASKED = "refit"


def solver_named(name: str) -> Solver:
    """Returns a registered solver.

    Raises:
        UsageError: There is none of this name.
    """
    if name not in SOLVERS:
        raise UsageError(f"unknown solver '{name}'.{did_you_mean(name, SOLVERS)}")
    return SOLVERS[name]


def chain_named(names: str) -> tuple[Solver, ...]:
    """Returns the solvers of a chain, written `sparsegpt+refit`.

    Raises:
        UsageError: One of them is unknown, or can't follow.
    """
    parts = [name.strip() for name in names.split("+")]
    if not all(parts):
        raise UsageError(f"the chain '{names}' has an empty step; write solvers with one + between two of them.")
    chain = tuple(solver_named(name) for name in parts)
    check_chain(chain)
    return chain


__all__ = [
    "AUTO",
    "AUTO_MASKED",
    "SOLVERS",
    "Problem",
    "Solution",
    "Solver",
    "Step",
    "chain_named",
    "needs_of_chain",
    "solve_chain",
    "solver_named",
]
