"""Swap: exchanges a kept and a removed weight of a row wherever that lowers the layer's error, until nothing does.

The exact error of one row is L = δ G δᵀ with δ = w - b. With g = δ G, removing q and bringing p back at its best
value t = (g_p + b_q G_pq) / G_pp changes it by

    ΔL = b_q² G_qq + 2 b_q g_q - (g_p + b_q G_pq)² / G_pp

Every row takes its best pair at a time, so the error only falls (the 1-swaps of Zimmer et al. 2025,
"SparseSwaps", arXiv 2512.10922, with the best value for what comes back instead of the dense one). Pairs are
sought among the SHORT cheapest removals and the SHORT best returns of a row; with N:M, among all of a group's.

    W, B, D, g    (rows, in) dense weights, current weights, W - B, D G
"""

from __future__ import annotations

import torch
from torch import Tensor

from secateur.allocation.amounts import Pattern
from secateur.calibration.statistics import Needs
from secateur.errors import SolverError
from secateur.solvers.base import Problem, Solution, Solver, mask_of, protected, start_of, statistics_of

SWAPS = 50  # at most, per row
SHORT = 16
LEAST = 1e-4  # of a row's error: a smaller gain isn't worth a pass


class Swap(Solver):
    """The best 1-swaps of each row on the exact layer error."""

    name = "swap"
    needs = Needs.GRAM
    moves = True
    about = "exchanges kept for removed weights where that lowers the layer's error"

    def solve(self, problem: Problem) -> Solution:
        keep = mask_of(problem).clone()
        G = statistics_of(problem).G
        if not bool(torch.isfinite(G).all()):
            raise SolverError(f"{problem.name}: the Gram matrix is NaN or infinite; use other calibration data.")
        B = start_of(problem).clone()
        D = problem.W - B
        g = D @ G
        fixed = protected(problem, B)
        mayreturn = ~keep & (problem.W != 0) & (G.diagonal() > 0)
        rows = torch.arange(B.shape[0], device=B.device)
        for _ in range(SWAPS):
            q, p, t, gain = _best(
                B[rows], g[rows], keep[rows] & ~fixed[rows], mayreturn[rows], G, problem.amount.pattern
            )
            error = (D[rows] * g[rows]).sum(1)
            useful = gain > LEAST * error
            if not bool(useful.any()):
                break
            rows, q, p, t = rows[useful], q[useful], p[useful], t[useful]
            b = B[rows, q]
            g[rows] += b[:, None] * G[q] - t[:, None] * G[p]
            D[rows, q] += b
            D[rows, p] -= t
            B[rows, q], B[rows, p] = 0.0, t
            keep[rows, q], keep[rows, p] = False, True
            mayreturn[rows, q], mayreturn[rows, p] = True, False
        return Solution(B, keep)


def _best(
    B: Tensor, g: Tensor, out: Tensor, back: Tensor, G: Tensor, pattern: Pattern | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns for each row the best pair: what goes (q), what comes back (p) at which value, and the gain.

    B, g: (rows, in). out, back: (rows, in) bool, which weights may go and which may come back.
    """
    diagonal = G.diagonal().clamp(min=torch.finfo(G.dtype).tiny)
    cost = (B * (B * diagonal + 2 * g)).masked_fill_(~out, torch.inf)
    worth = (g.square() / diagonal).masked_fill_(~back, -torch.inf)
    if pattern is None:
        some = min(SHORT, B.shape[1])
        cost, q = cost.topk(some, dim=1, largest=False)  # (rows, some)
        worth, p = worth.topk(some, dim=1)
        q, p = q[:, :, None], p[:, None, :]
        possible = (torch.isfinite(cost)[:, :, None]) & torch.isfinite(worth)[:, None, :]
    else:
        rows, inputs = B.shape
        places = torch.arange(inputs, device=B.device).view(-1, pattern.m)
        q = places[:, :, None].expand(-1, -1, pattern.m).reshape(1, -1, 1).expand(rows, -1, 1)
        p = places[:, None, :].expand(-1, pattern.m, -1).reshape(1, -1, 1).expand(rows, -1, 1)
        cost = cost.gather(1, q[:, :, 0])
        possible = (torch.isfinite(cost) & back.gather(1, p[:, :, 0]))[:, :, None]
    q, p = torch.broadcast_tensors(q, p)
    removed = cost[:, :, None].expand(q.shape).flatten(1)
    possible, q, p = possible.flatten(1), q.flatten(1), p.flatten(1)
    pull = g.gather(1, p) + B.gather(1, q) * G[q, p]
    gain = (pull.square() / diagonal[p] - removed).masked_fill_(~possible, -torch.inf)
    best = gain.argmax(1, keepdim=True)
    q, p = q.gather(1, best)[:, 0], p.gather(1, best)[:, 0]
    return q, p, pull.gather(1, best)[:, 0] / diagonal[p], gain.gather(1, best)[:, 0]
