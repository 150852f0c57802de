"""The way of a pass through a model, and how its layers are shared out among processes."""

from __future__ import annotations

from collections.abc import Sequence

from secateur.calibration.statistics import GRADIENTS, INPUTS, Needs
from secateur.network.network import Layer, Network


class Route:
    """The way of a pass through a model.

    Attributes:
        blocks: The layers that are visited, by block.
        outside: Those outside of the blocks, which come last.
        end: Blocks that are visited.
        passed: Blocks that activations pass through, to those behind them.
    """

    def __init__(self, network: Network, layers: Sequence[Layer], needs: Needs) -> None:
        self.blocks: list[list[Layer]] = [[] for _ in network.blocks]
        for layer in layers:
            if layer.block is not None:
                self.blocks[layer.block].append(layer)
        self.outside = [layer for layer in layers if layer.block is None]
        self.end = max((number + 1 for number, some in enumerate(self.blocks) if some), default=0)
        self.passed = self.end - 1
        if needs & INPUTS and self.outside:
            self.end = self.passed = len(self.blocks)

    def ticks(self, first: int, needs: Needs, batches: int) -> int:
        """Returns how often the progress moves from block `first` on."""
        passes = max(0, self.passed - first)
        visits = sum(map(bool, self.blocks[first:])) * (1 + bool(needs & GRADIENTS))
        dense = max(0, self.end - first) * (Needs.OUTPUTS in needs)
        return (passes + visits + dense) * batches + sum(map(len, self.blocks[first:])) + len(self.outside)


def owners(layers: Sequence[Layer], size: int) -> list[int]:
    """Shares layers out among processes, the dearest first to the one with the least work (rows x columns²)."""
    work = [0] * size
    found = [0] * len(layers)
    for cost, number in sorted(((one.shape[0] * one.shape[1] ** 2, n) for n, one in enumerate(layers)), reverse=True):
        owner = work.index(min(work))
        found[number] = owner
        work[owner] += cost
    return found
