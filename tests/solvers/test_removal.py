"""Removing units that several layers read."""

from __future__ import annotations

import torch

from secateur.solvers.removal import Consumer, elimination, joint_elimination


def test_layers_that_read_the_same_count_as_one() -> None:
    random = torch.Generator().manual_seed(0)
    X = torch.randn(24, 200, generator=random) + torch.randn(1, 200, generator=random)
    W, G = torch.randn(10, 24, generator=random), X @ X.T
    index = torch.arange(24).view(8, 3)
    whole = elimination(W, G, index, 6)
    parts = joint_elimination([Consumer(W[:4], G, index), Consumer(W[4:], G, index)], 6)
    assert parts.order.tolist() == whole.order.tolist()
    torch.testing.assert_close(parts.losses, whole.losses, rtol=1e-3, atol=0)
    assert abs(parts.energy / whole.energy - 1) < 1e-5


def test_a_layer_of_no_weight_has_no_say() -> None:
    random = torch.Generator().manual_seed(0)
    G = torch.eye(6)
    one, other = torch.rand(2, 6, generator=random), torch.rand(2, 6, generator=random)
    index = torch.arange(6)[:, None]
    alone = elimination(one, G, index, 5)
    both = joint_elimination([Consumer(one, G, index), Consumer(other, G, index, 0.0)], 5)
    assert both.order.tolist() == alone.order.tolist()
