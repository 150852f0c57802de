"""SparseGPT: one sweep over the columns, each removal made up for in the columns to come.

Frantar and Alistarh 2023, arXiv 2301.00774, algorithm 1. The paper's letters:

    W     (out, in) weights; here V = Wᵀ, so that a column of W is contiguous
    H     (in, in) damped Gram matrix X Xᵀ
    U     upper Cholesky factor of H⁻¹:  H⁻¹ = Uᵀ U
    E     (columns of a block, out) errors of a block, applied to all later columns at once

One thing differs: what goes of a block is chosen anew every TILE columns, as many weights as before, since the
updates within the block have changed the saliency of what is left of it. That lowers the layers' error.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from secateur.allocation.amounts import Amount, row_counts
from secateur.allocation.selection import (
    check_room,
    check_room_in_rows,
    check_rows_hold,
    guard,
    keep_mask,
    lowest,
    lowest_of_groups,
    lowest_of_rows,
)
from secateur.calibration.statistics import Needs
from secateur.compression.grid import Grid
from secateur.errors import SolverError
from secateur.linear_algebra import inverse_factor
from secateur.solvers.base import Problem, Solution, Solver, statistics_of

TILE = 32  # columns within a block that are updated one by one; the rest of the block gets their sum


class SparseGPT(Solver):
    """Chooses weights block by block by the OBS saliency, or keeps to a given mask, and updates the others."""

    name = "sparsegpt"
    needs = Needs.GRAM
    chooses = True
    rounds = True
    about = "OBS saliency and updates, column by column (Frantar and Alistarh 2023)"

    def solve(self, problem: Problem) -> Solution:
        G = statistics_of(problem).G
        try:
            U, damping = inverse_factor(G, self.damping_of(problem))
        except SolverError as error:
            raise SolverError(f"{problem.name}: {error}") from error
        dead = statistics_of(problem).norms == 0
        chooser = _Chooser(problem, U, dead)
        rounder = None if problem.grid is None else _Rounder(problem.grid, problem.W, chooser.likely(), G)
        if rounder is not None:
            chooser.block = rounder.aligned(chooser.block, chooser.tile)
        V = problem.W.T.clone(memory_format=torch.contiguous_format)
        prune = torch.zeros_like(V, dtype=torch.bool)
        inputs = V.shape[0]
        for start in range(0, inputs, chooser.block):
            end = min(start + chooser.block, inputs)
            E = _sweep(V[start:end], prune[start:end], U[start:end, start:end], chooser, start, rounder)
            if end < inputs:
                V[end:] -= U[start:end, end:].T @ E
        V[prune] = 0
        return Solution(V.T.contiguous(), ~prune.T, damping, None if rounder is None else rounder.scales)


def _sweep(
    V: Tensor, prune: Tensor, U: Tensor, chooser: _Chooser, start: int, rounder: _Rounder | None = None
) -> Tensor:
    """Prunes one block in place, tile by tile, and returns its errors E: (columns, out).

    V: (columns, out); prune: (columns, out), filled here; U: (columns, columns).
    """
    E = torch.empty_like(V)
    diagonal = U.diagonal()
    if not chooser.by_tile:
        prune.copy_(chooser.choose(V, start))
    for first in range(0, V.shape[0], chooser.tile):
        last = min(first + chooser.tile, V.shape[0])
        if chooser.by_tile:
            prune[first:last] = chooser.choose(V[first:last], start + first)
        elif first:
            chooser.choose_again(V[first:], prune[first:], start + first)
        for j in range(first, last):
            if rounder is None:
                torch.div(V[j] * prune[j], diagonal[j], out=E[j])
                V[j:last].addr_(U[j, j:last], E[j], alpha=-1)
            else:
                rounded = rounder.column(V, prune, j, start)
                torch.div(V[j] - rounded, diagonal[j], out=E[j])
                V[j:last].addr_(U[j, j:last], E[j], alpha=-1)
                V[j] = rounded
        if last < V.shape[0]:
            V[last:].addmm_(U[first:last, last:].T, E[first:last], alpha=-1)
    return E


class _Rounder:
    """Rounds columns to a grid; a group's scales are chosen when the sweep reaches it, by what has become of it.

    Attributes:
        scales: (out, groups) float32.
    """

    def __init__(self, grid: Grid, W: Tensor, likely: Tensor, G: Tensor) -> None:
        """
        Args:
            grid: The grid.
            W: (out, in) float32, before the sweep.
            likely: (out, in) bool, True for what is likely to stay; scales are chosen for that.
            G: (in, in), the Gram matrix.
        """
        self.grid, self.likely, self.inputs = grid, likely, W.shape[1]
        self.width = grid.width(self.inputs)
        self.weights = G.diagonal().clamp_min(torch.finfo(G.dtype).tiny)
        if grid.group is None:
            self.scales = grid.all_scales(W * likely, self.weights)
        else:
            self.scales = torch.ones(W.shape[0], self.inputs // self.width, device=W.device)

    def aligned(self, block: int, tile: int) -> int:
        """Returns a block of whole groups and whole tiles."""
        if self.grid.group is None:
            return block
        least = math.lcm(self.width, tile)
        return max(1, block // least) * least

    def column(self, V: Tensor, prune: Tensor, j: int, start: int) -> Tensor:
        """Returns (out,) a block's column `j` on the grid, 0 where it goes. V, prune: (columns, out)."""
        group = (start + j) // self.width
        if self.grid.group is not None and (start + j) % self.width == 0:
            part = slice(j, j + self.width)
            inputs = slice(start + j, start + j + self.width)
            kept = V[part].masked_fill(prune[part], 0).T * self.likely[:, inputs]
            weights = self.weights[inputs]
            self.scales[:, group] = self.grid.scales(kept, weights).squeeze(1)
        return self.grid.rounded(V[j], self.scales[:, group]).masked_fill_(prune[j], 0)


class _Chooser:
    """Chooses the weights of a block or tile that go, so that all blocks together meet the amount exactly.

    Attributes:
        block: Columns per block.
        tile: Columns per tile.
        by_tile: Choose when a tile is reached (N:M, where tile = M) rather than a block.
    """

    def __init__(self, problem: Problem, U: Tensor, dead: Tensor) -> None:
        self.problem = problem
        self.diagonal = U.diagonal()
        self.dead = dead
        gone = problem.W.T == 0
        self._gone = gone if bool(gone.any()) else None
        self.block, self.tile = problem.block_size, TILE
        amount = problem.amount
        inputs = problem.W.shape[1]
        self.given = problem.keep
        if self.given is None and amount.pattern is not None:
            amount.pattern.check(inputs, problem.name)
            check_rows_hold(amount, problem.W.shape, problem.name)
            self.tile = amount.pattern.m
            self.block = max(1, self.block // self.tile) * self.tile
        elif self.given is None and amount.threshold is not None:
            self.given = keep_mask(self._saliency(problem.W.T, 0).T, amount, problem.name)[0]
        self.by_tile = self.given is None and amount.pattern is not None
        self._guarded: Tensor | None = None
        self._done = 0
        if self.given is None and amount.remove is not None:
            self._plan(amount)

    def _plan(self, amount: Amount) -> None:
        """Shares an exact count out over rows, and marks what must stay, by the saliency before any update."""
        assert amount.remove is not None
        saliency = self._saliency(self.problem.W.T, 0).T
        guarded = guard(saliency, amount.min_per_output)
        check_room(amount.remove, guarded, self.problem.name)
        if amount.min_per_output > 0:
            self._guarded = torch.isposinf(guarded.T)
        if amount.per == "output":
            self._rows = row_counts(amount.remove, guarded)
            self._rows_done = torch.zeros_like(self._rows)
            check_room_in_rows(lowest_of_rows(guarded, self._rows), guarded, self.problem.name)

    def _saliency(self, V: Tensor, start: int) -> Tensor:
        """W² / U_jj² for columns from `start`. V: (columns, out).

        What is zero already goes first (as in every score), then inputs that never fire.
        """
        columns = slice(start, start + V.shape[0])
        S = (V / self.diagonal[columns, None]).square()
        S[self.dead[columns]] = -1.0
        if self._gone is not None:
            S[self._gone[columns]] = -torch.inf
        return S

    def likely(self) -> Tensor:
        """Returns (out, in) bool, True for what would stay by the saliency before any update."""
        if self.given is not None:
            return self.given
        S, amount = self._saliency(self.problem.W.T, 0).T, self.problem.amount
        if amount.pattern is not None:
            return ~lowest_of_groups(S, amount.pattern)
        assert amount.remove is not None
        return ~lowest(S, amount.remove)

    def choose(self, V: Tensor, start: int) -> Tensor:
        """Returns (columns, out) bool, True for what goes of the columns from `start` on."""
        amount = self.problem.amount
        end = start + V.shape[0]
        if self.given is not None:
            return ~self.given.T[start:end]
        S = self._saliency(V, start)
        if amount.pattern is not None:
            return lowest_of_groups(S.T, amount.pattern).T | torch.isneginf(S)
        if self._guarded is not None:
            S[self._guarded[start:end]] = float("inf")
        if amount.per == "output":
            return self._choose_in_rows(S, end)
        assert amount.remove is not None
        return lowest(S, self._share(amount.remove, S, end))

    def choose_again(self, V: Tensor, prune: Tensor, start: int) -> None:
        """Chooses as many weights of a block's rest anew, in place, now that its updates are known.

        V, prune: (columns, out), the block's columns from `start` on.
        """
        if self.given is not None:
            return
        S = self._saliency(V, start)
        if self._guarded is not None:
            S[self._guarded[start : start + V.shape[0]]] = float("inf")
        if self.problem.amount.per == "output":
            prune.copy_(lowest_of_rows(S.T, prune.sum(0)).T)
        else:
            prune.copy_(lowest(S, int(prune.sum())))

    def _share(self, remove: int, S: Tensor, end: int) -> int:
        """How many of this block's weights go, as even as rounding and guarded weights allow."""
        inputs = self.problem.W.shape[1]
        room = int((~torch.isposinf(S)).sum()) if self._guarded is not None else S.numel()
        later = 0 if self._guarded is None else int((~self._guarded[end:]).sum())
        later = later if self._guarded is not None else (inputs - end) * S.shape[1]
        share = round(remove * end / inputs) - self._done
        share = min(max(share, remove - self._done - later), room)
        if self._gone is not None:  # zeros stay zeros, here and in the blocks to come
            share = min(max(share, int(torch.isneginf(S).sum())), remove - self._done - int(self._gone[end:].sum()))
        self._done += share
        return share

    def _choose_in_rows(self, S: Tensor, end: int) -> Tensor:
        """As `_share`, row by row."""
        inputs = self.problem.W.shape[1]
        share = (self._rows * end / inputs).round().long() - self._rows_done
        if self._guarded is not None:
            later = (~self._guarded[end:]).sum(0)
            room = (~torch.isposinf(S)).sum(0)
            share = torch.minimum(torch.maximum(share, self._rows - self._rows_done - later), room)
        if self._gone is not None:
            rest = self._rows - self._rows_done - self._gone[end:].sum(0)
            share = torch.minimum(torch.maximum(share, torch.isneginf(S).sum(0)), rest)
        share = share.clamp(0, S.shape[0])
        self._rows_done += share
        return lowest_of_rows(S.T, share).T
