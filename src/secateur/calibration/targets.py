"""What a layer should give: moments of its input together with a target for its output."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from secateur.calibration.activations import Activations
from secateur.calibration.precision import gram_products
from secateur.calibration.runner import BlockRunner
from secateur.network.network import Layer
from secateur.processes import Processes


@dataclass(frozen=True)
class Moments:
    """Sums over calibration tokens of a layer's input x and of what it should give, t.

    Attributes:
        count: Number of tokens.
        G: (in, in) float32, the sum of x xᵀ.
        C: (out, in) float32, the sum of t xᵀ.
        x: (in,) float32, the sum of x.
        t: (out,) float32, the sum of t.
        energy: The sum of |t|².
    """

    count: int
    G: Tensor
    C: Tensor
    x: Tensor
    t: Tensor
    energy: float

    @classmethod
    def of_outputs(cls, W: Tensor, bias: Tensor | None, count: int, G: Tensor, x: Tensor) -> Moments:
        """Returns the moments where the layer should give what it gives: t = W x + b."""
        b = torch.zeros(W.shape[0], device=W.device) if bias is None else bias
        C = W @ G + b[:, None] * x
        t = W @ x + count * b
        energy = (W @ G * W).sum(dtype=torch.float64) + 2 * (b * (W @ x)).sum(dtype=torch.float64)
        return cls(count, G, C, x, t, float(energy + count * b.square().sum(dtype=torch.float64)))

    def centred(self) -> Moments:
        """Returns the same about the means, for a layer whose bias takes the means up."""
        mean = self.x / self.count
        G = self.G - torch.outer(self.x, mean)
        C = self.C - torch.outer(self.t, mean)
        energy = self.energy - float(self.t.double().square().sum()) / self.count
        return Moments(self.count, G, C, torch.zeros_like(self.x), torch.zeros_like(self.t), energy)


class MomentSums:
    """Moments in the making, batch by batch."""

    def __init__(self, layer: Layer, device: torch.device) -> None:
        rows, columns = layer.shape
        self._exact = torch.float32 if device.type == "mps" else torch.float64
        self._G = torch.zeros(columns, columns, device=device)
        self._C = torch.zeros(rows, columns, device=device)
        self._x = torch.zeros(columns, dtype=self._exact, device=device)
        self._t = torch.zeros(rows, dtype=self._exact, device=device)
        self._sums = torch.zeros(2, dtype=torch.float64)  # tokens, energy

    def add(self, x: Tensor, t: Tensor, compute: str) -> None:
        """Adds a batch.

        Args:
            x: (tokens, in) what the layer reads.
            t: (tokens, out) what it should give.
            compute: See `products`.
        """
        x, t = x.float(), t.float()
        with gram_products(compute):
            self._G.addmm_(x.T, x)
            self._C.addmm_(t.T, x)
        self._x += x.sum(0)
        self._t += t.sum(0)
        energy = float(t.square().sum(dtype=self._exact))
        self._sums += torch.tensor([float(x.shape[0]), energy], dtype=torch.float64)

    def total(self, team: Processes) -> Moments:
        """Returns the sums over all processes."""
        for part in (self._G, self._C, self._x, self._t, self._sums):
            team.sum(part)
        count, energy = self._sums.tolist()
        return Moments(int(count), self._G, self._C, self._x.float(), self._t.float(), energy)


def output_moments(runner: BlockRunner, layer: Layer, targets: Activations, tick: Callable[[], None]) -> Moments:
    """Passes every batch through the next block and holds a layer's output against what would make the block's right.

    The layer's output is added to what the block gives, so t is its output plus what the block lacks to the target: the
    dense model's hidden states behind the block. That makes up for the errors of earlier blocks, too.

    Args:
        runner: It stands before the block.
        layer: A layer of the block whose output is added to the hidden states as it is.
        targets: The dense model's hidden states behind the block, one tensor per batch of the runner.
        tick: Called after each batch.
    """
    assert layer.module is not None
    sums = MomentSums(layer, runner.network.device)
    seen: list[tuple[Tensor, Tensor]] = []

    def hook(_: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        seen.append((args[0].flatten(0, -2), output.flatten(0, -2)))

    handle = layer.module.register_forward_hook(hook)
    try:
        for batch, output in runner.block_outputs():
            x, y = seen.pop()
            lacking = targets[batch].to(output.device).float() - output.float()
            sums.add(x, y.float() + lacking.flatten(0, -2), runner.compute)
            tick()
    finally:
        handle.remove()
    return sums.total(runner.team)
