"""AlphaPruning: blocks whose weights have a heavier-tailed spectrum, a sign of good training, give less."""

from __future__ import annotations

from collections import defaultdict
from statistics import mean

import torch
from torch import Tensor

from secateur.allocation.allocator import Allocator, meet
from secateur.calibration.statistics import Statistics

REACH = 0.3  # the paper's ε: shares lie between (1 - ε) S and (1 + ε) S


class Alpha(Allocator):
    """Shares linear in a block's mean Hill exponent (Lu et al. 2024, arXiv 2410.10912, section 3.2). Needs no data."""

    name = "alpha"
    about = "less from blocks whose spectrum has a heavy tail (Lu et al. 2024); needs no data"

    def __init__(self, sparsity: float) -> None:
        super().__init__(sparsity)
        self._blocks: dict[str, str] = {}
        self._exponents: dict[str, list[float]] = defaultdict(list)

    def add(self, layer: str, block: str, W: Tensor, statistics: Statistics | None) -> None:
        self.sizes[layer] = W.numel()
        self._blocks[layer] = block
        self._exponents[block].append(hill_exponent(W))

    def counts(self) -> dict[str, int]:
        exponents = {block: mean(found) for block, found in self._exponents.items()}
        low, high = min(exponents.values()), max(exponents.values())
        factor = {
            block: 1 - REACH + 2 * REACH * ((value - low) / (high - low) if high > low else 0.5)
            for block, value in exponents.items()
        }
        shares = {name: self.sparsity * factor[block] for name, block in self._blocks.items()}
        return meet(shares, self.sizes, self.total, *self.bounds)


def hill_exponent(W: Tensor) -> float:
    """Returns 1 + k / Σ_i ln(λ_i / λ_k) over the k = n/2 largest eigenvalues λ of the smaller of WᵀW and WWᵀ.

    W: (out, in) float32.
    """
    square = W.T @ W if W.shape[0] >= W.shape[1] else W @ W.T
    eigenvalues = torch.linalg.eigvalsh(square.double()).flip(0)
    k = max(1, len(eigenvalues) // 2)
    floor = eigenvalues[0].clamp(min=torch.finfo(torch.float64).tiny) * 1e-12
    logarithms = eigenvalues.clamp(min=floor).log()
    spread = float((logarithms[:k] - logarithms[min(k, len(logarithms) - 1)]).sum())
    return 1 + k / spread if spread > 0 else float(k)
