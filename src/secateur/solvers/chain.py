"""Chains of solvers: `sparsegpt+refit`. Each goes on from what the one before left, and none makes a row worse."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from secateur.calibration.statistics import Needs
from secateur.errors import UsageError
from secateur.linear_algebra import row_errors
from secateur.solvers.base import Problem, Solution, Solver


@dataclass(frozen=True)
class Step:
    """What one solver of a chain did to a layer.

    Attributes:
        solver: Its name.
        error_before, error: Relative reconstruction error ||(W - W')X||² / ||WX||² of what it was given (for the
            first: of the mask alone) and of what it left; None where no Gram matrix was gathered.
        rows_refused: Outputs on which it would have been worse, and which were left as it was given them.
        damping: The damping that it took, None where none was used.
    """

    solver: str
    error_before: float | None
    error: float | None
    rows_refused: int = 0
    damping: float | None = None


def check_chain(chain: Sequence[Solver]) -> None:
    """Raises UsageError if a solver can't follow the one before it."""
    for before, solver in itertools.pairwise(chain):
        if solver is before:
            raise UsageError(
                f"in the chain {'+'.join(one.name for one in chain)}, '{solver.name}' follows itself, which changes "
                "nothing; name it once."
            )
        if not solver.follows:
            raise UsageError(
                f"in the chain {'+'.join(one.name for one in chain)}, '{solver.name}' can't follow '{before.name}': it "
                "would put the dense values back. Leave it out, or put it first."
            )


def needs_of_chain(chain: Sequence[Solver]) -> Needs:
    """Returns the statistics that any of the solvers reads."""
    needs = Needs.NOTHING
    for solver in chain:
        needs |= solver.needs
    return needs


def solve_chain(chain: Sequence[Solver], problem: Problem) -> tuple[Solution, tuple[Step, ...]]:
    """Solves one layer by solvers one after the other.

    An output row on which a solver comes out worse than what it was given stays as it was: the layer's error
    is a sum over rows, and rows keep their number of zeros.

    Args:
        chain: At least one solver.
        problem: The layer.

    Returns:
        The last solver's solution, and what each did.

    Raises:
        SolverError: See the solvers.
    """
    gram = problem.statistics is not None and problem.statistics.gram is not None
    G = problem.statistics.G if problem.statistics is not None and gram else None
    whole = float(row_errors(problem.W, G).sum(dtype=torch.float64)) if G is not None else 0.0
    before: Tensor | None = None
    steps = []
    for solver in chain:
        solution = solver.solve(problem)
        if G is None:
            steps.append(Step(solver.name, None, None, 0, solution.damping))
        else:
            keep = solution.keep if problem.keep is None else problem.keep
            start = problem.W * keep if problem.start is None else problem.start
            if before is None:
                before = row_errors(problem.W - start, G)
            after = row_errors(problem.W - solution.W, G)
            refused = ~(after <= before)
            if bool(refused.any()):
                at = refused[:, None]
                solution = replace(
                    solution, W=torch.where(at, start, solution.W), keep=torch.where(at, keep, solution.keep)
                )
                after = torch.where(refused, before, after)
            first, last = (float(one.sum(dtype=torch.float64)) / whole if whole > 0 else 0.0 for one in (before, after))
            steps.append(Step(solver.name, first, last, int(refused.sum()), solution.damping))
            before = after
        problem = replace(problem, keep=solution.keep, start=solution.W)
    return solution, tuple(steps)
