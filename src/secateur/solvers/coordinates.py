"""Coordinates in which every input has unit norm, where |V| is the Wanda score: what admm and alps share.

n     (in,) norms of the inputs, ||X_j||
A     (in, in) X Xᵀ / (n nᵀ), damped
V     (out, in) weights scaled by n
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from secateur.allocation.selection import check_rows_hold, keep_mask, lowest, lowest_of_groups
from secateur.errors import SolverError
from secateur.solvers.base import Problem, statistics_of

DEAD = 1e-6  # norm of an input that never fires, relative to the largest


class Coordinates:
    """A problem in coordinates of unit norm, and its masks.

    Attributes:
        n: (in,) norms.
        A: (in, in) damped.
        V: (out, in), the dense weights.
    """

    def __init__(self, problem: Problem, damping: float) -> None:
        """Changes coordinates.

        Args:
            problem: The layer.
            damping: Added to A's diagonal.

        Raises:
            SolverError: The Gram matrix isn't finite.
            PatternError, UsageError: The amount doesn't fit the layer.
        """
        G = statistics_of(problem).G
        if not bool(torch.isfinite(G).all()):
            raise SolverError(f"{problem.name}: the Gram matrix is NaN or infinite; use other calibration data.")
        norms = G.diagonal().sqrt()
        self.n = norms.clamp(min=DEAD * max(float(norms.max()), DEAD))
        self.A = G / self.n
        self.A /= self.n[:, None]
        self.A.diagonal().fill_(1 + damping)
        self.V = problem.W * self.n
        self._problem = problem
        self._amount = problem.amount
        self._given = problem.keep
        gone, dead = problem.W == 0, norms == 0
        self._gone = gone if bool(gone.any()) else None
        self._dead = dead if bool(dead.any()) else None
        if self._given is None and self._amount.pattern is not None:
            self._amount.pattern.check(problem.W.shape[1], problem.name)
            check_rows_hold(self._amount, problem.W.shape, problem.name)
        if self._given is None and self._amount.threshold is not None:
            self._given = keep_mask(self._saliency(self.V), self._amount, problem.name)[0]

    def take(self) -> tuple[Tensor, Tensor]:
        """Returns V and A to a solver that writes into them, and gives them up here."""
        V, A = self.V, self.A
        del self.V, self.A
        return V, A

    def back(self, V: Tensor) -> Tensor:
        """Returns weights in the layer's own coordinates, contiguous."""
        return V / self.n

    def keep(self, V: Tensor, fraction: float = 1.0) -> Tensor:
        """Returns (out, in) bool: which weights stay, by |V|; a mask that was given is returned as it is.

        Args:
            V: (out, in) iterate.
            fraction: Of what the amount removes, for masks that grow step by step.
        """
        if self._given is not None:
            return self._given
        S = self._saliency(V)
        if self._amount.pattern is None:
            assert self._amount.remove is not None
            amount = replace(self._amount, remove=round(self._amount.remove * fraction))
            return keep_mask(S, amount, self._problem.name)[0]
        prune = lowest_of_groups(S, self._amount.pattern)
        if self._gone is not None:
            prune |= self._gone
        if fraction < 1:
            S[~prune] = torch.inf
            prune = lowest(S, round(int(prune.sum()) * fraction))
        return ~prune

    @property
    def fixed(self) -> bool:
        """Whether `keep` returns one and the same mask, whatever the iterate."""
        return self._given is not None

    def _saliency(self, V: Tensor) -> Tensor:
        """|V|; what is zero already goes first, then inputs that never fire."""
        S = V.abs()
        if self._dead is not None:
            S.masked_fill_(self._dead, -1.0)
        if self._gone is not None:
            S.masked_fill_(self._gone, -torch.inf)
        return S
