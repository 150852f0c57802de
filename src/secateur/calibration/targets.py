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
    rows, columns = layer.shape
    device = runner.network.device
    G, C = torch.zeros(columns, columns, device=device), torch.zeros(rows, columns, device=device)
    exact = torch.float32 if device.type == "mps" else torch.float64
    x_sum, t_sum = torch.zeros(columns, dtype=exact, device=device), torch.zeros(rows, dtype=exact, device=device)
    sums = torch.zeros(2, dtype=torch.float64)  # tokens, energy
    seen: list[tuple[Tensor, Tensor]] = []

    def hook(_: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        seen.append((args[0].flatten(0, -2), output.flatten(0, -2)))

    handle = layer.module.register_forward_hook(hook)
    try:
        for batch, output in runner.block_outputs():
            x, y = (one.float() for one in seen.pop())
            t = y + (targets[batch].to(device).float() - output.float()).flatten(0, -2)
            sums += torch.tensor([float(x.shape[0]), float(t.square().sum(dtype=exact))], dtype=torch.float64)
            x_sum += x.sum(0)
            t_sum += t.sum(0)
            with gram_products(runner.compute):
                G.addmm_(x.T, x)
                C.addmm_(t.T, x)
            tick()
    finally:
        handle.remove()
    for part in (G, C, x_sum, t_sum, sums):
        runner.team.sum(part)
    return Moments(int(sums[0]), G, C, x_sum.float(), t_sum.float(), float(sums[1]))
