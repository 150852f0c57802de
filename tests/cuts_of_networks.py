"""Holds cut networks against the dense ones in which nothing reads what went."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from secateur.network.graph.network import GraphNetwork
from secateur.network.graph.proof import silenced
from secateur.network.graph.values import tensors


def some_units(network: GraphNetwork, seed: int = 0, share: float = 0.6) -> dict[str, Tensor]:
    """Returns which units stay: by group (units,) bool, at least one."""
    random = torch.Generator().manual_seed(seed)
    keep = {}
    for group in network.groups:
        kept = torch.rand(group.count, generator=random) < share
        kept[int(torch.randint(group.count, (1,), generator=random))] = True
        keep[group.name] = kept
    return keep


def exact(network: GraphNetwork, small: nn.Module, keep: dict[str, Tensor]) -> None:
    """Asserts that a cut changed nothing that is read, in evaluation and in training."""
    for train in (False, True):
        network.model.train(train)
        small.train(train)
        torch.manual_seed(1)
        dense = list(tensors(silenced(network, keep, *network.inputs)))
        torch.manual_seed(1)
        cut = list(tensors(small(*network.inputs)))
        assert len(dense) == len(cut) > 0
        for one, other in zip(dense, cut, strict=True):
            torch.testing.assert_close(other, one, atol=2e-5, rtol=1e-4)
    network.model.eval()
    small.eval()
