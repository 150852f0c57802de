"""The contract of allocations that look at the dense model layer by layer, and what meets a budget exactly."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor

from secateur.calibration.statistics import Needs, Statistics

SPREAD = 0.2  # a layer's sparsity stays this near to the model's
HIGHEST = 0.99


class Allocator(ABC):
    """Gives each layer its share of a model's zeros. One use: add every layer, then ask for the counts.

    Attributes:
        name: The name in recipes and on the command line.
        needs: The statistics of the dense model's inputs that it reads.
        about: One line for `--help` and the docs.
    """

    name: ClassVar[str]
    needs: ClassVar[Needs] = Needs.NOTHING
    about: ClassVar[str]

    def __init__(self, sparsity: float) -> None:
        """Begins with the share of zeros that the whole model is to have."""
        self.sparsity = sparsity
        self.sizes: dict[str, int] = {}

    @abstractmethod
    def add(self, layer: str, block: str, W: Tensor, statistics: Statistics | None) -> None:
        """Looks at one layer of the dense model; layers come in forward order.

        Args:
            layer, block: Its name, and that of the block that it is part of.
            W: (out, in) float32.
            statistics: Of its input.
        """

    @abstractmethod
    def counts(self) -> dict[str, int]:
        """Returns how many zeros each layer gets; they add up to round(sparsity · all weights)."""

    @property
    def total(self) -> int:
        """The number of zeros in all."""
        return round(self.sparsity * sum(self.sizes.values()))

    @property
    def bounds(self) -> tuple[float, float]:
        """The lowest and the highest sparsity that a layer may get."""
        return max(0.0, self.sparsity - SPREAD), max(self.sparsity, min(HIGHEST, self.sparsity + SPREAD))


def meet(shares: Mapping[str, float], sizes: Mapping[str, int], total: int, low: float, high: float) -> dict[str, int]:
    """Turns wished-for sparsities into zeros that add up to `total` exactly.

    All shares move by one and the same shift and are clipped to [low, high]; the last few weights go to the layers
    with the largest fractions.

    Args:
        shares: Sparsity by layer.
        sizes: Weights by layer.
        total: Zeros in all; low · weights <= total <= high · weights, up to rounding.
        low, high: Bounds of each layer's sparsity.
    """
    below, above = low - max(shares.values()), high - min(shares.values())
    for _ in range(100):  # halves the interval down to float precision
        shift = (below + above) / 2
        if sum(min(max(shares[name] + shift, low), high) * sizes[name] for name in shares) < total:
            below = shift
        else:
            above = shift
    exact = {name: min(max(shares[name] + above, low), high) * sizes[name] for name in shares}
    counts = {name: int(value) for name, value in exact.items()}
    rest = total - sum(counts.values())
    for name in sorted(exact, key=lambda name: exact[name] - counts[name], reverse=True):
        step = min(max(rest, -counts[name]), 1) if rest < 0 else min(rest, 1, sizes[name] - counts[name])
        counts[name] += step
        rest -= step
    return counts
