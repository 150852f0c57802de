"""Removing whole groups of a layer's inputs: which ones, and the best weights on what is left.

A layer W reads X; units (neurons, heads) are groups of its columns. What is minimised is ‖T - W'X‖² over W' that is
zero on the columns that go, T being what the layer should give: WX, or what makes up for earlier errors, too.

    W     (out, in) weights                  G    (in, in) Gram matrix X Xᵀ
    C     (out, in) T Xᵀ; W G if T = WX      H    G damped            H⁻¹  its inverse

Sources: optimal brain surgeon for groups of columns (ZipLM, Kurtic et al. 2023, arXiv 2302.04089, eq. 2 and 3), in
rounds; least squares on what is kept (OSSCAR, Meng et al. 2024, arXiv 2403.12983).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from secateur.calibration.targets import Moments
from secateur.errors import SolverError
from secateur.linear_algebra import DAMPING, damped, damped_cholesky

ROUNDS = 16


@dataclass(frozen=True)
class Path:
    """In which order units go.

    Attributes:
        order: (removed,) int64: units, the first to go first.
        losses: (removed,) float64: by how much each one's going raises the squared error; never falling.
        energy: The squared size of what the layer should give.
    """

    order: Tensor
    losses: Tensor
    energy: float


@dataclass(frozen=True)
class Consumer:
    """One of the layers that read the same units.

    Attributes:
        W: (out, in) float32: the best weights with nothing removed.
        G: (in, in) float32.
        index: (units, width) int64: each unit's columns.
        weight: What its squared error is multiplied with in the sum over all layers.
    """

    W: Tensor
    G: Tensor
    index: Tensor
    weight: float = 1.0


def elimination(
    W: Tensor, G: Tensor, index: Tensor, remove: int, damping: float = DAMPING, rounds: int = ROUNDS
) -> Path:
    """Removes units that one layer reads; see `joint_elimination`."""
    return joint_elimination([Consumer(W, G, index)], remove, damping, rounds)


def joint_elimination(
    consumers: Sequence[Consumer], remove: int, damping: float = DAMPING, rounds: int = ROUNDS
) -> Path:
    """Removes units in rounds; after each, the weights that are left make up for those that went.

    Args:
        consumers: All layers that read the units.
        remove: How many units go.
        damping: Relative to the mean of each G's diagonal.
        rounds: In how many rounds.

    Raises:
        SolverError: A G isn't positive definite even when damped.
    """
    shrinking = [_Shrinking(one, damping) for one in consumers]
    energy = sum(one.weight * float(((one.W @ one.G) * one.W).sum(dtype=torch.float64)) for one in consumers)
    left = torch.ones(consumers[0].index.shape[0], dtype=torch.bool)
    order, losses = [], []
    for step in range(rounds):
        batch = remove * (step + 1) // rounds - remove * step // rounds
        if batch == 0:
            continue
        units = left.nonzero().flatten()
        saliency = torch.stack([one.saliency(units) for one in shrinking]).sum(0)
        values, chosen = saliency.topk(batch, largest=False)
        gone = units[chosen.cpu()]
        for one in shrinking:
            one.remove(gone)
        left[gone] = False
        order.append(gone)
        losses.append(values.double().cpu())
    if not order:
        return Path(torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.float64), energy)
    return Path(torch.cat(order), torch.cat(losses).cummax(0).values, energy)


class _Shrinking:
    """A layer while units go."""

    def __init__(self, consumer: Consumer, damping: float) -> None:
        L, _ = damped_cholesky(consumer.G, damping)
        self._consumer = consumer
        self._H_inverse = torch.cholesky_inverse(L)
        self._W = consumer.W.clone()

    def saliency(self, units: Tensor) -> Tensor:
        """Returns (units,): by how much the error rises when each goes alone, as it is weighted."""
        found = column_saliency(self._W, self._H_inverse, self._consumer.index[units])
        return self._consumer.weight * found

    def remove(self, units: Tensor) -> None:
        """Lets units go, and the weights that are left make up for them."""
        P = self._consumer.index[units].flatten().to(self._W.device)
        factor, info = torch.linalg.cholesky_ex(self._H_inverse[P][:, P])
        if int(info):
            raise SolverError("the inverse Gram matrix lost its precision while units went; use more --damping.")
        step = torch.cholesky_solve(self._H_inverse[P], factor)  # (P, in)
        self._W -= self._W[:, P] @ step
        self._H_inverse -= self._H_inverse[:, P] @ step
        self._W[:, P] = 0


def column_saliency(W: Tensor, H_inverse: Tensor, index: Tensor) -> Tensor:
    """Returns (units,) float32: tr(W_S ([H⁻¹]_SS)⁻¹ W_Sᵀ), the squared error that is left when unit S goes alone.

    Args:
        W: (out, in) float32.
        H_inverse: (in, in) float32.
        index: (units, width) int64.
    """
    if index.shape[1] == 1:
        columns = index[:, 0]
        single: Tensor = W[:, columns].square().sum(0) / H_inverse.diagonal()[columns]
        return single
    blocks = H_inverse[index[:, :, None], index[:, None, :]]  # (units, width, width)
    W_S = W[:, index].permute(1, 2, 0)  # (units, width, out)
    factor = torch.linalg.cholesky(blocks)
    found: Tensor = torch.linalg.solve_triangular(factor, W_S, upper=False).square().sum((1, 2))
    return found


@dataclass(frozen=True)
class Refit:
    """New weights of a layer from whose inputs some went.

    Attributes:
        W: (out, in) float32, zero on the columns that went.
        bias: (out,) float32; None for a layer without one.
        error_before, error: Squared error relative to the size of what the layer should give, with the columns merely
            gone and after the refit.
    """

    W: Tensor
    bias: Tensor | None
    error_before: float
    error: float


def refit(W: Tensor, bias: Tensor | None, moments: Moments, columns: Tensor, damping: float = DAMPING) -> Refit:
    """Returns the least squares weights on the columns that stay.

    The damping pulls towards the weights that were there, so that nothing is lost where the data say nothing.

    Args:
        W: (out, in) float32.
        bias: (out,) float32 or None.
        moments: Of the layer's input and of what it should give.
        columns: (in,) bool: those that stay.
        damping: Relative to the mean of G's diagonal.
    """
    own = moments if bias is None else moments.centred()
    K = columns.nonzero().flatten().to(W.device)
    merely = torch.zeros_like(W)
    merely[:, K] = W[:, K]
    G_K = own.G[K][:, K]
    H = damped(G_K, damping)
    extra = H.diagonal() - G_K.diagonal()
    L, _ = damped_cholesky(G_K, damping)
    new = torch.zeros_like(W)
    new[:, K] = torch.cholesky_solve((own.C[:, K] + W[:, K] * extra).T, L).T
    if not bool(torch.isfinite(new).all()):
        raise SolverError("the refit came out as NaN or infinite; use more calibration data, or --no-repair.")
    before, after = (_error(candidate, bias, moments) for candidate in (merely, new))
    new_bias = None
    if bias is not None:
        new_bias = (moments.t - new @ moments.x) / moments.count
        after = _error(new, new_bias, moments)
    if not after <= before:
        return Refit(merely, bias, before, before)
    return Refit(new, new_bias, before, after)


def _error(W: Tensor, bias: Tensor | None, moments: Moments) -> float:
    """Returns ‖T - W X - b‖² relative to ‖T‖²."""
    whole = moments.energy
    if whole <= 0:
        return 0.0
    double = torch.float64
    found = whole + float(((W @ moments.G) * W).sum(dtype=double)) - 2 * float((W * moments.C).sum(dtype=double))
    if bias is not None:
        found += moments.count * float(bias.square().sum(dtype=double))
        found += 2 * float((bias * (W @ moments.x)).sum(dtype=double)) - 2 * float((bias * moments.t).sum(dtype=double))
    return max(found, 0.0) / whole
