"""DSnoT: exchanges kept and removed weights of a row so that the mean output comes back to the dense one.

Zhang et al. 2024, "Dynamic Sparse No Training: Training-Free Fine-tuning for Sparse LLMs", arXiv 2310.08915,
section 3.2. For one row, with μ and σ² the mean and variance of its inputs:

    e = Σ_j (w_j - b_j) μ_j                                     what the mean output lacks
    grow   the removed weight of the largest sign(e) w_j μ_j / σ_j²
    prune  the kept weight of the smallest Wanda score among those with sign(b_j μ_j) = -sign(e)

until |e| no longer falls. Values aren't updated: what comes back has its dense value.
"""

from __future__ import annotations

import torch

from secateur.calibration.statistics import Needs
from secateur.errors import SolverError
from secateur.solvers.base import Problem, Solution, Solver, mask_of, protected, start_of, statistics_of

CYCLES = 50
ENOUGH = 0.01  # of the root mean square of a row's output


class DSnoT(Solver):
    """Mask changes by the mean reconstruction error; the Gram matrix only serves to report the exact one."""

    name = "dsnot"
    needs = Needs.GRAM
    moves = True
    about = "exchanges weights so that each output's mean comes back (Zhang et al. 2024)"

    def solve(self, problem: Problem) -> Solution:
        statistics = statistics_of(problem)
        norms, mean = statistics.norms, statistics.mean
        if not bool(torch.isfinite(statistics.G).all() and torch.isfinite(mean).all()):
            raise SolverError(f"{problem.name}: the statistics are NaN or infinite; use other calibration data.")
        variance = norms.square() / statistics.count - mean.square()
        alive = variance > 1e-6 * norms.square() / statistics.count
        W, B, keep = problem.W, start_of(problem).clone(), mask_of(problem).clone()
        fixed = protected(problem, B)
        mayreturn = ~keep & (W != 0) & alive
        growth = W * (mean / variance.clamp(min=torch.finfo(torch.float32).tiny))
        e = ((W - B) * mean).sum(1)
        enough = ENOUGH * (W.square() @ norms.square() / statistics.count).sqrt()
        rows = (e.abs() > enough).nonzero().flatten()
        group = None if problem.amount.pattern is None else problem.amount.pattern.m
        for _ in range(CYCLES):
            if rows.numel() == 0:
                break
            sign = e[rows].sign()[:, None]
            gain, p = (growth[rows] * sign).masked_fill_(~mayreturn[rows], -torch.inf).max(1)
            out = keep[rows] & ~fixed[rows] & ((B[rows] * mean).sign() == -sign)
            if group is not None:
                out &= torch.arange(W.shape[1], device=W.device) // group == (p // group)[:, None]
            cost, q = (B[rows].abs() * norms).masked_fill_(~out, torch.inf).min(1)
            after = e[rows] - W[rows, p] * mean[p] + B[rows, q] * mean[q]
            useful = (gain > 0) & torch.isfinite(cost) & (after.abs() < e[rows].abs())
            rows, p, q = rows[useful], p[useful], q[useful]
            B[rows, p], B[rows, q] = W[rows, p], 0.0
            keep[rows, p], keep[rows, q] = True, False
            mayreturn[rows, p], mayreturn[rows, q] = False, True
            e[rows] = after[useful]
            rows = rows[e[rows].abs() > enough[rows]]
        return Solution(B, keep)
