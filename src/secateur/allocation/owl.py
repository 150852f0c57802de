"""OWL: blocks with more outliers among their Wanda scores give less."""

from __future__ import annotations

import torch
from torch import Tensor

from secateur.allocation.allocator import Allocator, meet
from secateur.calibration.statistics import Needs, Statistics

OUTLIER = 5.0  # times the mean of a block's scores
REACH = 0.08  # the paper's lambda: the sparsest and the densest block are 2 · REACH apart


class Owl(Allocator):
    """s_b = S - (k_b - mean k), k_b the share of outliers scaled to [0, 2λ] (Yin et al. 2024, arXiv 2310.05175).

    A score |w| ||x|| is an outlier if it is more than OUTLIER times the mean of its block's scores.
    """

    name = "owl"
    needs = Needs.MOMENTS
    about = "less from blocks with many outlier weights (Yin et al. 2024)"

    def __init__(self, sparsity: float) -> None:
        super().__init__(sparsity)
        self._blocks: dict[str, str] = {}
        self._outliers: dict[str, float] = {}
        self._scores: list[Tensor] = []  # of the block that is being looked at
        self._block: str | None = None

    def add(self, layer: str, block: str, W: Tensor, statistics: Statistics | None) -> None:
        assert statistics is not None
        if block != self._block:
            self._close()
            self._block = block
        self.sizes[layer] = W.numel()
        self._blocks[layer] = block
        self._scores.append((W.abs() * statistics.norms).flatten())

    def _close(self) -> None:
        if self._block is not None:
            scores = torch.cat(self._scores)
            self._outliers[self._block] = float((scores > OUTLIER * scores.mean()).float().mean())
            self._scores = []

    def counts(self) -> dict[str, int]:
        self._close()
        low, high = min(self._outliers.values()), max(self._outliers.values())
        k = {name: 2 * REACH * (value - low) / ((high - low) or 1.0) for name, value in self._outliers.items()}
        return meet(
            {name: self.sparsity - k[block] for name, block in self._blocks.items()},
            self.sizes,
            self.total,
            *self.bounds,
        )
