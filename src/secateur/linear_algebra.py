"""Gram matrices: damping and factorisation, shared by scores and solvers."""

from __future__ import annotations

import torch
from torch import Tensor

from secateur.errors import SolverError

DAMPING = 0.01
DAMPING_STEPS = 5  # each ten times the one before: 0.01 ... 100


def damped(G: Tensor, damping: float) -> Tensor:
    """Returns H = G + damping · mean(diag G) · I, with 1 · mean on the diagonal of inputs that never fired.

    Args:
        G: (in, in) Gram matrix.
        damping: Relative to the mean of G's diagonal.
    """
    H = G.clone()
    diagonal = H.diagonal()
    mean = diagonal.mean()
    if mean == 0:
        mean = mean + 1.0
    diagonal[diagonal == 0] = mean
    diagonal += damping * mean
    return H


def damped_cholesky(G: Tensor, damping: float = DAMPING) -> tuple[Tensor, float]:
    """Returns the lower Cholesky factor of the damped Gram matrix, and the damping that it took.

    Damping rises tenfold at a time until the factorisation succeeds.

    Raises:
        SolverError: It fails even at the highest damping.
    """
    for step in range(DAMPING_STEPS):
        relative = damping * 10**step
        L, info = torch.linalg.cholesky_ex(damped(G, relative))
        if int(info) == 0 and bool(torch.isfinite(L.diagonal()).all()):
            return L, relative
    raise SolverError(
        f"the Gram matrix isn't positive definite even with damping {relative:g}; "
        "use more or other calibration data, a higher --damping, or --score wanda."
    )


def inverse_factor(G: Tensor, damping: float = DAMPING) -> tuple[Tensor, float]:
    """Returns the upper Cholesky factor U of the inverse damped Gram matrix, H⁻¹ = Uᵀ U, and the damping.

    With J, which reverses the order, J H J = L Lᵀ gives H = (J L J)(J L J)ᵀ and so U = J L⁻¹ J: one
    factorisation and a triangular inverse. Factorising H⁻¹ instead is slower, and fails in float32 where
    H is close to singular.

    Raises:
        SolverError: As `damped_cholesky`.
    """
    L, relative = damped_cholesky(G.flip(0, 1), damping)
    inverse = torch.eye(L.shape[0], dtype=L.dtype, device=L.device)
    inverse = torch.linalg.solve_triangular(L, inverse, upper=False)
    del L  # matrices of a wide layer are most of the memory that a block takes
    return inverse.flip(0, 1), relative


def row_errors(D: Tensor, G: Tensor) -> Tensor:
    """Returns (out,) the squared output error of each row, d G dᵀ.

    Args:
        D: (out, in) float32, the change of the weights.
        G: (in, in) float32, the Gram matrix.
    """
    return ((D @ G) * D).sum(1).clamp(min=0)


def relative_error(W: Tensor, pruned: Tensor, G: Tensor) -> float:
    """Returns the relative reconstruction error tr(D G Dᵀ) / tr(W G Wᵀ) with D = W - pruned.

    Args:
        W, pruned: (out, in) float32.
        G: (in, in) float32.
    """
    whole = float(row_errors(W, G).sum(dtype=torch.float64))
    return float(row_errors(W - pruned, G).sum(dtype=torch.float64)) / whole if whole > 0 else 0.0
