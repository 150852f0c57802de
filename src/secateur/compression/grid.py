"""The grids that quantized weights lie on: symmetric integers times a scale, per output or per group of inputs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from secateur.errors import UsageError

GROUPS = (128, 64, 32)  # what `auto` tries
SHRINKS = tuple(
    1 - step / 40 for step in range(17)
)  # of the largest weight, of which the scale with least error is taken


@dataclass(frozen=True)
class Grid:
    """Integers from -top to top, times a scale; zero lies on every grid, so a pruned weight stays exactly zero.

    Attributes:
        bits: 8 or 4.
        group: Inputs that share a scale; None shares one among an output's inputs.
        dtype: Of the scales, and of the weights that come back from the integers.
    """

    bits: int
    group: int | None
    dtype: torch.dtype

    @property
    def top(self) -> int:
        """The largest integer."""
        return (1 << (self.bits - 1)) - 1

    def width(self, inputs: int) -> int:
        """Returns how many inputs share a scale in a layer with so many."""
        return inputs if self.group is None else self.group

    def scales(self, W: Tensor, weights: Tensor | None = None) -> Tensor:
        """Returns the scale of each row that leaves the least squared error of rounding to nearest.

        Args:
            W: (rows, inputs) float32; all inputs of a row share a scale.
            weights: (inputs,) float32, how much each input's error counts; None counts all alike.

        Returns:
            (rows, 1) float32, of values that `dtype` has; 1 for rows of zeros.
        """
        largest = W.abs().amax(1, keepdim=True)
        best, scale = torch.full_like(largest, torch.inf), torch.ones_like(largest)
        for shrink in SHRINKS if self.bits < 8 else SHRINKS[:1]:
            tried = (largest * (shrink / self.top)).to(self.dtype).float()
            tried = torch.where(tried > 0, tried, 1.0)
            squares = (W - self.rounded(W, tried)).square()
            error = (squares if weights is None else squares * weights).sum(1, keepdim=True)
            scale = torch.where(error < best, tried, scale)
            best = torch.minimum(error, best)
        return scale

    def integers(self, W: Tensor, scale: Tensor) -> Tensor:
        """Returns the nearest integers, as W is shaped and in its dtype."""
        return (W / scale).round().clamp(-self.top, self.top)

    def rounded(self, W: Tensor, scale: Tensor) -> Tensor:
        """Returns the nearest points of the grid, as they come back from integers and scales in `dtype`: float32."""
        return (self.integers(W, scale).to(self.dtype) * scale.to(self.dtype)).float()

    def all_scales(self, W: Tensor, weights: Tensor | None = None) -> Tensor:
        """Returns (out, groups) scales of a whole layer (out, in), see `scales`."""
        out, inputs = W.shape
        width = self.width(inputs)
        parts = W.reshape(out * (inputs // width), width)
        if weights is not None:
            weights = weights.reshape(1, -1, width).expand(out, -1, -1).reshape(-1, width)
        return self.scales(parts, weights).reshape(out, inputs // width)

    def spread(self, scales: Tensor, inputs: int) -> Tensor:
        """Returns (out, in) from (out, groups): the scale of each weight."""
        return scales.repeat_interleave(self.width(inputs), 1)


def group_for(columns: dict[str, int], group: int | None) -> int:
    """Returns how many inputs share a scale in some layers.

    Args:
        columns: Inputs of each layer, by name.
        group: What was asked for; None takes the largest of GROUPS that divides them all.

    Raises:
        UsageError: It doesn't divide a layer's inputs.
    """
    for size in (group,) if group is not None else GROUPS:
        wrong = next((name for name, inputs in columns.items() if inputs % size), None)
        if wrong is None:
            return size
    assert wrong is not None
    tried = f"groups of {group} don't divide" if group is not None else "none of 128, 64 and 32 divides"
    raise UsageError(
        f"quantize: {tried} the {columns[wrong]} inputs of {wrong}; give another group, or per: channel, or cut units "
        "in multiples (round_to: 32)."
    )
