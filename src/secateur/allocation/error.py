"""Error: the budget is spent where the measured reconstruction error grows least.

Every layer's relative reconstruction error ||(W - W ⊙ M)X||² / ||WX||² is measured at several sparsities, from one
and the same Gram matrix. The lower convex hulls of these curves are then climbed in the order of their slopes
(error per weight removed) until the budget is met: for convex piecewise linear curves that is the optimum.

Where it is known what an error of each output adds to the model's loss (`sensitivity`, see
`secateur.calibration.loss.output_sensitivity`), that takes the place of the relative error: s_i (E X Xᵀ Eᵀ)_ii, the
mean over tokens, summed over outputs i.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise

from torch import Tensor

from secateur.allocation.allocator import Allocator
from secateur.allocation.selection import lowest
from secateur.calibration.statistics import Needs, Statistics
from secateur.linear_algebra import row_errors

STEPS = 8  # levels between the bounds


class MarginalError(Allocator):
    """Least sum of the layers' relative errors, measured with Wanda's masks on the dense model."""

    name = "error"
    needs = Needs.GRAM
    about = "more where the measured layer error grows least"

    def __init__(self, sparsity: float, sensitivity: Mapping[str, Tensor] | None = None) -> None:
        """Begins; `sensitivity` is (out,) float32 by layer: what an error of each output costs."""
        super().__init__(sparsity)
        self._sensitivity = sensitivity or {}
        self._curves: dict[str, list[tuple[int, float]]] = {}

    def add(self, layer: str, block: str, W: Tensor, statistics: Statistics | None) -> None:
        assert statistics is not None
        self.sizes[layer] = W.numel()
        low, high = self.bounds
        G, scores = statistics.G, W.abs() * statistics.norms
        known = self._sensitivity.get(layer)
        weights = 1 / (row_errors(W, G).sum() or 1.0) if known is None else known.to(G.device) / statistics.count
        levels = {math.ceil((low + (high - low) * step / STEPS) * W.numel()) for step in range(1, STEPS + 1)}
        removed = sorted(levels | {int(low * W.numel())})
        self._curves[layer] = hull(
            [(count, float((weights * row_errors(W * lowest(scores, count), G)).sum())) for count in removed]
        )

    def counts(self) -> dict[str, int]:
        counts = {layer: curve[0][0] for layer, curve in self._curves.items()}
        rest = self.total - sum(counts.values())
        rises = [
            ((error - before) / (count - fewer), position, layer, count - fewer)
            for layer, curve in self._curves.items()
            for position, ((fewer, before), (count, error)) in enumerate(pairwise(curve))
        ]
        for _, _, layer, more in sorted(rises):
            step = min(more, rest)
            counts[layer] += step
            rest -= step
        return counts


def hull(points: list[tuple[int, float]]) -> list[tuple[int, float]]:
    """Returns the lower convex hull of (removed, error) points in ascending order of `removed`."""
    found: list[tuple[int, float]] = []
    for x, y in points:
        while len(found) > 1:
            (x0, y0), (x1, y1) = found[-2:]
            if (y1 - y0) * (x - x0) < (y - y0) * (x1 - x0):
                break
            found.pop()
        found.append((x, y))
    return found
