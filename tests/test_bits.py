"""Weights that are set to zero by masks of bits."""

from __future__ import annotations

import pytest
import torch

from secateur.bits import bits_of, clear


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_what_goes_is_plus_zero_and_the_rest_as_it_was(dtype: torch.dtype) -> None:
    weights = torch.randn(12, 20, generator=torch.Generator().manual_seed(0)).to(dtype)
    weights[0, :4] = torch.tensor([-0.0, torch.inf, -torch.inf, torch.nan])
    stays = torch.rand(12, 20, generator=torch.Generator().manual_seed(1)) > 0.5
    stays[0, :4] = False
    before = weights.clone()
    clear(weights.T, bits_of(stays.T))
    assert torch.equal(weights[stays], before[stays])
    assert bool((weights[~stays] == 0).all())
    assert not bool(torch.signbit(weights[~stays]).any())


def test_a_parameter_is_cleared_in_place() -> None:
    layer = torch.nn.Linear(4, 4)
    stays = torch.eye(4, dtype=torch.bool)
    clear(layer.weight, bits_of(stays))
    assert int((layer.weight != 0).sum()) == 4
    assert layer.weight.requires_grad
