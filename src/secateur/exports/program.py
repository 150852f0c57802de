"""One file of an export."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from secateur.network.network import Network

Free = dict[int, str]


@dataclass(frozen=True)
class Program:
    """One file of an export.

    Attributes:
        name: Of the file, without its ending.
        module: What is exported, in eval mode.
        inputs: Names of the inputs, in order; those of a cache are flat.
        outputs: Names of the outputs.
        free: The axes of each input that may have any length, by what they are called.
        examples: Inputs (flat, in order) of other lengths than one another: the first to export with, all to check.
    """

    name: str
    module: nn.Module
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    free: tuple[Free, ...]
    examples: tuple[tuple[Tensor, ...], ...]

    def expected(self, example: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Returns torch's outputs."""
        with torch.inference_mode():
            found: tuple[Tensor, ...] = self.module(*example)
        return found


def example_ids(network: Network, batch: int, length: int, seed: int) -> Tensor:
    """Returns (batch, length) random tokens of a model."""
    vocabulary = network.dimension("vocabulary") or 2
    return torch.randint(0, vocabulary, (batch, length), generator=torch.Generator().manual_seed(1000 * seed + length))
