"""Grids of few bits, and what the sweep puts on them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from secateur.allocation.amounts import Amount, Pattern
from secateur.calibration.statistics import Needs, Statistics
from secateur.compression.grid import Grid, group_for
from secateur.errors import UsageError
from secateur.linear_algebra import relative_error
from secateur.network.quantized import packed, unpacked
from secateur.solvers.base import Problem
from secateur.solvers.sparsegpt import SparseGPT


def layer(out: int = 24, inputs: int = 64, tokens: int = 256) -> tuple[torch.Tensor, Statistics]:
    random = torch.Generator().manual_seed(0)
    common = torch.randn(tokens, 12, generator=random) @ torch.randn(12, inputs, generator=random)
    X = common + torch.randn(tokens, inputs, generator=random)  # inputs that go together, as those of real layers do
    statistics = Statistics.empty(inputs, Needs.GRAM, torch.device("cpu"))
    statistics.add(X)
    return torch.randn(out, inputs, generator=random), statistics


def on_grid(W: torch.Tensor, scales: torch.Tensor, grid: Grid) -> bool:
    spread = grid.spread(scales, W.shape[1])
    return torch.equal(grid.rounded(W, spread), W) and bool((W / spread).abs().max() <= grid.top + 0.5)


@given(bits=st.sampled_from([4, 8]), out=st.integers(1, 5), inputs=st.integers(1, 40), seed=st.integers(0, 99))
@settings(deadline=None, max_examples=50)
def test_integers_come_back_from_words(bits: int, out: int, inputs: int, seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    top = 2 ** (bits - 1) - 1
    integers = torch.randint(-top, top + 1, (out, inputs), generator=random)
    words = packed(integers, bits)
    assert words.shape == (out, -(-inputs * bits // 32))
    assert torch.equal(unpacked(words, bits, inputs), integers)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("group", [None, 16, 32])
@pytest.mark.parametrize("bits", [4, 8])
def test_the_sweep_keeps_zeros_and_beats_rounding(bits: int, group: int | None, dtype: torch.dtype) -> None:
    W, statistics = layer()
    W[torch.rand(W.shape, generator=torch.Generator().manual_seed(1)) < 0.5] = 0
    keep = W != 0
    grid = Grid(bits, group, dtype)
    solution = SparseGPT().solve(Problem("layer", W, statistics, Amount(), keep, grid=grid))
    assert solution.scales is not None
    assert on_grid(solution.W, solution.scales, grid)
    assert bool((solution.W[~keep] == 0).all())
    nearest = grid.rounded(W, grid.spread(grid.all_scales(W), W.shape[1]))
    assert relative_error(W, solution.W, statistics.G) < relative_error(W, nearest, statistics.G)


@pytest.mark.parametrize("group", [None, 32, 48])
@pytest.mark.parametrize("amount", [Amount(remove=768), Amount(pattern=Pattern(2, 4))])
def test_the_joint_sweep_removes_as_much_as_asked_and_rounds_the_rest(amount: Amount, group: int | None) -> None:
    W, statistics = layer(inputs=96)
    amount = Amount(remove=W.numel() // 2) if amount.remove is not None else amount
    grid = Grid(4, group, torch.float32)
    solution = SparseGPT().solve(Problem("layer", W, statistics, amount, grid=grid))
    assert solution.scales is not None
    assert on_grid(solution.W, solution.scales, grid)
    assert int((~solution.keep).sum()) == W.numel() // 2
    assert bool((solution.W[~solution.keep] == 0).all())
    after = SparseGPT().solve(Problem("layer", W, statistics, amount))
    rounded = grid.rounded(after.W, grid.spread(grid.all_scales(after.W), 96))
    assert relative_error(W, solution.W, statistics.G) < relative_error(W, rounded, statistics.G)


def test_a_scale_has_no_more_error_than_that_of_the_largest_weight() -> None:
    W, _ = layer()
    grid = Grid(4, None, torch.float32)
    plain = W.abs().amax(1, keepdim=True) / grid.top
    best = grid.scales(W)
    errors = [(W - grid.rounded(W, scale)).square().sum(1) for scale in (best, plain)]
    assert bool((errors[0] <= errors[1]).all())
    assert bool((errors[0] < errors[1]).any())
    assert torch.equal(grid.scales(torch.zeros(2, 8)), torch.ones(2, 1))


def test_groups_have_to_divide_the_inputs() -> None:
    assert group_for({"a": 576, "b": 1536}, None) == 64
    assert group_for({"a": 512}, None) == 128
    assert group_for({"a": 48}, 16) == 16
    with pytest.raises(UsageError, match=r"groups of 100 don't divide the 576 inputs of a"):
        group_for({"a": 576}, 100)
    with pytest.raises(UsageError, match="none of 128, 64 and 32 divides"):
        group_for({"a": 44}, None)
