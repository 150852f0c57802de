"""ADMM with a gradual mask: alternates between a least squares step and a projection onto the mask.

Boza 2024, "Fast and Effective Weight Update for Pruned Large Language Models", arXiv 2401.02938, algorithm 1 with
the gradual mask of section 3.3, in the coordinates of `Coordinates`:

    B     (out, in) V A, what the least squares step pulls towards
    Y     (out, in) scaled dual variable
    Z     (out, in) the projection of V + Y onto the mask M
    rho   penalty
"""

from __future__ import annotations

import torch

from secateur.calibration.statistics import Needs
from secateur.solvers.base import Problem, Solution, Solver
from secateur.solvers.coordinates import Coordinates

ITERATIONS = 20
MASK_STEPS = 15  # iterations in which the mask still changes
RHO = 1.0


class Admm(Solver):
    """Chooses the mask step by step on the iterate's own Wanda score, or keeps to a given one."""

    name = "admm"
    needs = Needs.GRAM
    chooses = True
    damping = 0.1  # lower perplexity than 0.01 at a slightly higher error (docs/solvers.md)
    about = "a mask that grows step by step, and ADMM updates (Boza 2024)"

    def solve(self, problem: Problem) -> Solution:
        damping = self.damping_of(problem)
        scaled = Coordinates(problem, damping)
        V, A = scaled.take()
        B = V @ A
        A.diagonal().add_(RHO)
        inverse = torch.linalg.cholesky(A)  # A's eigenvalues are rho and more
        del A
        inverse = torch.cholesky_inverse(inverse)
        Y = torch.zeros_like(V)
        keep = scaled.keep(V, _share(0))
        for step in range(ITERATIONS):
            S = V.add_(Y)
            if 0 < step < MASK_STEPS and not scaled.fixed:
                keep = scaled.keep(S, _share(step))
            Z = S * keep
            Y = S - Z
            V = Z.sub_(Y).mul_(RHO).add_(B) @ inverse
        return Solution(scaled.back(V.add_(Y).mul_(keep)), keep, damping)


def _share(step: int) -> float:
    """The share of the final zeros after a step: cubic, as Zhu and Gupta 2017."""
    return 1 - (1 - (step + 1) / MASK_STEPS) ** 3
