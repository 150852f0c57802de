"""Low rank: the two thin matrices whose product best gives a layer's outputs, alone or beside single weights.

With Gram matrix G = X Xᵀ of the inputs the best product of rank r is the projection of W X on its r strongest output
directions: min ||(W - A B) X||² is reached by A = U, B = Uᵀ W, with U the leading eigenvectors of W G Wᵀ (Eckart and
Young 1936; what SVD-LLM, Wang et al. 2024, arXiv 2403.07378, reaches by whitening, section 3.1).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from secateur.linear_algebra import DAMPING, damped, damped_cholesky, relative_error
from secateur.solvers.refit import refit

SLIGHT = 1e-6  # damping that only lets a factorisation succeed


@dataclass(frozen=True)
class Decomposition:
    """What stands for a weight: up · down, and the single weights beside it.

    Attributes:
        up: (out, rank)
        down: (rank, in)
        kept: (out, in), mostly zeros; None without single weights.
    """

    up: Tensor
    down: Tensor
    kept: Tensor | None = None

    @property
    def W(self) -> Tensor:
        """(out, in): the weight that they stand for."""
        product = self.up @ self.down
        return product if self.kept is None else product + self.kept

    @property
    def rank(self) -> int:
        """Columns of `up`."""
        return self.up.shape[1]


def energies(W: Tensor, G: Tensor) -> tuple[Tensor, Tensor]:
    """Returns what each output direction carries, and the directions, strongest first.

    Args:
        W: (out, in) float32.
        G: (in, in) float32.

    Returns:
        (k,) squared outputs and (out, k) orthonormal directions, k = min(out, in).
    """
    if W.shape[0] <= W.shape[1]:
        values, U = torch.linalg.eigh(W @ G @ W.T)
        return values.flip(0).clamp(min=0), U.flip(1)
    L, _ = damped_cholesky(G, SLIGHT)
    values, V = torch.linalg.eigh(L.T @ (W.T @ W) @ L)
    U, _ = torch.linalg.qr(W @ L @ V.flip(1))  # as orthonormal as floats let it be, also where a value is tiny
    return values.flip(0).clamp(min=0), U


def low_rank(W: Tensor, G: Tensor, rank: int) -> Decomposition:
    """Returns the best factors of a rank.

    Args:
        W: (out, in) float32.
        G: (in, in) float32.
        rank: At most min(out, in).
    """
    _, U = energies(W, G)
    U = U[:, :rank].contiguous()
    return Decomposition(U, U.T @ W)


def sparse_and_low_rank(W: Tensor, G: Tensor, rank: int, kept: int, rounds: int) -> Decomposition:
    """Returns W as single weights and factors that are fitted to each other in turns.

    The alternation is that of OATS (Zhang and Papyan 2024, arXiv 2409.13652, algorithm 1), with two changes: factors
    are the best for the whole Gram matrix and not its diagonal, and single weights are refitted on their places, as
    HASSLE-free does (Makni et al. 2025, arXiv 2502.00899). What had the least error of all rounds comes back.

    Args:
        W: (out, in) float32.
        G: (in, in) float32.
        rank: Of the factors.
        kept: Number of single weights.
        rounds: How often.
    """
    scale = G.diagonal().clamp(min=0).sqrt()
    H = damped(G, DAMPING)
    best, least = low_rank(W, G, rank), math.inf
    for _ in range(rounds):
        rest = W - best.up @ best.down
        places = torch.zeros_like(W, dtype=torch.bool)
        places.view(-1)[(rest * scale).abs().flatten().topk(kept).indices] = True
        single = refit(rest, rest * places, places, H)
        factors = low_rank(W - single, G, rank)
        found = Decomposition(factors.up, factors.down, refit(W - factors.W, single, places, H))
        error = relative_error(W, found.W, G)
        if error >= least:
            break
        best, least = found, error
    return best


def break_even(shape: tuple[int, int]) -> int:
    """Returns the highest rank at which factors of a (out, in) weight have fewer parameters than it."""
    return (shape[0] * shape[1] - 1) // (shape[0] + shape[1])


def ranks_by_error(
    spectra: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, int]], budget: int
) -> dict[str, int | None]:
    """Shares parameters out: each goes where it keeps the largest share of a layer's outputs.

    As a layer's directions come strongest first, taking the best step of all layers again and again is exact, but for
    the last ones. A layer's last step leaves it whole (None), which costs no more than another rank.

    Args:
        spectra: (k,) what each direction carries, strongest first, by layer.
        shapes: (out, in), by layer.
        budget: Parameters for all layers together.

    Returns:
        Ranks by layer, each at least 1.
    """
    names = list(spectra)
    costs, worths = [], []
    for name in names:
        values, each, most = spectra[name], sum(shapes[name]), break_even(shapes[name])
        cost = torch.full((most,), each)
        cost[-1] = math.prod(shapes[name]) - most * each
        gains = torch.cat([values[1:most], values[most:].sum()[None]]) / values.sum()
        costs.append(cost)
        worths.append((gains / cost).cummin(0).values)
    owner = torch.cat([torch.full((len(one),), number) for number, one in enumerate(costs)])
    order = torch.cat(worths).argsort(descending=True, stable=True)
    spent = sum(map(sum, shapes.values())) + torch.cat(costs)[order].cumsum(0)
    counts = torch.bincount(owner[order[: int((spent <= budget).sum())]], minlength=len(names)).tolist()
    return {
        name: None if count == len(one) else count + 1 for name, one, count in zip(names, costs, counts, strict=True)
    }
