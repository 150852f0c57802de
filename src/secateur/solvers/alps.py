"""ALPS: ADMM whose penalty rises until the mask stands still, then conjugate gradients on the mask.

Meng, Behdin, Wang and Mazumder 2024, "ALPS: Improved Optimization for Highly Sparse One-Shot Pruning for Large
Language Models", arXiv 2406.07831, algorithm 1 and section 3.3, in the coordinates of `Coordinates`:

    Q, L  A = Q diag(L) Qᵀ, so that the inverse at any penalty costs one product
    R     (out, in) V A
    D     (out, in) the projection onto the mask; B the least squares step; U the dual variable
    rho   penalty
"""

from __future__ import annotations

import torch

from secateur.calibration.statistics import Needs
from secateur.linear_algebra import damped
from secateur.solvers.base import Problem, Solution, Solver, statistics_of
from secateur.solvers.coordinates import Coordinates
from secateur.solvers.refit import refit

ITERATIONS = 100
RHO = 0.1
HIGHEST_RHO = 1e6
EVERY = 3  # iterations between two changes of the penalty
EARLIEST_STOP = 30
STILL = 3e-4  # share of the kept weights that may still change when it stops
RISES = ((0.1, 1.3), (0.005, 1.2), (0.0, 1.1))  # above this share of changes the penalty rises by this factor


class Alps(Solver):
    """Chooses the mask by ADMM until it stands still, and refits; on a given mask it only refits."""

    name = "alps"
    needs = Needs.GRAM
    chooses = True
    about = "ADMM with a rising penalty, then least squares (Meng et al. 2024)"

    def solve(self, problem: Problem) -> Solution:
        damping = self.damping_of(problem)
        scaled = Coordinates(problem, damping)
        keep = scaled.keep(scaled.V)
        B = scaled.V * keep
        if not scaled.fixed:
            keep, B = _settle(scaled, keep)
        H = damped(statistics_of(problem).G, damping)
        return Solution(refit(problem.W, scaled.back(B), keep, H), keep, damping)


def _settle(scaled: Coordinates, keep: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the mask on which the iteration settles, and the weights on it, in unit coordinates."""
    L, Q = torch.linalg.eigh(scaled.A.double())
    L, Q = L.float(), Q.float()
    R = scaled.V @ scaled.A
    D, U = scaled.V * keep, torch.zeros_like(scaled.V)
    rho, before = RHO, keep
    kept = max(1, int(keep.sum()))
    inverse = (Q / (L + rho)) @ Q.T
    B = D
    for iteration in range(1, ITERATIONS + 1):
        B = (R - U + rho * D) @ inverse
        S = B + U / rho
        keep = scaled.keep(S)
        D = S * keep
        U += rho * (B - D)
        if iteration % EVERY:
            continue
        changed = int((keep != before).sum()) / kept
        before = keep
        if changed == 0 or (iteration >= EARLIEST_STOP and changed < STILL) or rho > HIGHEST_RHO:
            break
        rho *= next(factor for above, factor in RISES if changed > above)
        inverse = (Q / (L + rho)) @ Q.T
    keep = scaled.keep(B)
    return keep, B * keep
