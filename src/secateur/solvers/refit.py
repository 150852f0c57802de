"""Refit: the best weights on a fixed mask, by conjugate gradients on all outputs at once.

Minimises tr((W - B) H (W - B)ᵀ) over B with B = 0 outside of the mask: the least squares problem of each row
on its own support, without a factorisation per row (as in ALPS, Meng et al. 2024, arXiv 2406.07831, section
3.3, preconditioned by the diagonal of H).

    W     (out, in) dense weights          B    (out, in) the iterate
    H     (in, in) damped Gram matrix      R    (out, in) residual (W - B) H on the support
    P     (out, in) search direction       Z    preconditioned residual
"""

from __future__ import annotations

import torch
from torch import Tensor

from secateur.calibration.statistics import Needs
from secateur.errors import SolverError
from secateur.linear_algebra import damped
from secateur.solvers.base import Problem, Solution, Solver, mask_of, start_of, statistics_of

ITERATIONS = 20
TOLERANCE = 1e-3  # of the residual's norm at the start, over all rows


class Refit(Solver):
    """Least squares on the given mask."""

    name = "refit"
    needs = Needs.GRAM
    about = "least squares on a mask that was chosen before, by conjugate gradients"

    def solve(self, problem: Problem) -> Solution:
        keep = mask_of(problem)
        damping = self.damping_of(problem)
        H = damped(statistics_of(problem).G, damping)
        B = refit(problem.W, start_of(problem), keep, H)
        if not bool(torch.isfinite(B).all()):
            raise SolverError(
                f"{problem.name}: the refit came out as NaN or infinite; use other calibration data, or --solver none."
            )
        return Solution(B, keep, damping)


def refit(W: Tensor, B: Tensor, keep: Tensor, H: Tensor) -> Tensor:
    """Returns B improved on its mask; the error tr((W - B) H (W - B)ᵀ) never grows.

    Args:
        W: (out, in) float32, the weights to stand in for.
        B: (out, in) float32, the start; zero outside of the mask.
        keep: (out, in) bool.
        H: (in, in) float32, positive definite.
    """
    inverse_diagonal = H.diagonal().reciprocal()
    B = B.clone()
    R = ((W - B) @ H).mul_(keep)
    Z = R * inverse_diagonal
    P = Z.clone()
    size = (R * Z).sum(1)
    enough = TOLERANCE**2 * float(size.sum())
    for _ in range(ITERATIONS):
        if float(size.sum()) <= enough:
            break
        PH = (P @ H).mul_(keep)
        curvature = (P * PH).sum(1)
        alpha = torch.where(curvature > 0, size / curvature, 0.0)[:, None]
        B.addcmul_(P, alpha)
        R.addcmul_(PH, alpha, value=-1)
        torch.mul(R, inverse_diagonal, out=Z)
        new_size = (R * Z).sum(1)
        beta = torch.where(size > 0, new_size / size, 0.0)[:, None]
        P.mul_(beta).add_(Z)
        size = new_size
    return B
