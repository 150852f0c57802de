"""Allocations that look at the dense model: exact budgets, bounds, and who gives more."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from secateur.allocation import ALLOCATORS
from secateur.allocation.allocator import HIGHEST, SPREAD, Allocator, meet
from secateur.allocation.alpha import hill_exponent
from secateur.allocation.error import MarginalError, hull
from secateur.calibration.statistics import Needs, Statistics
from secateur.linear_algebra import relative_error

CPU = torch.device("cpu")
every_allocator = pytest.mark.parametrize("kind", ALLOCATORS.values(), ids=ALLOCATORS)


def statistics(width: int, seed: int) -> Statistics:
    random = torch.Generator().manual_seed(seed)
    found = Statistics.empty(width, Needs.GRAM, CPU)
    found.add(torch.randn(80, width, generator=random) * (0.2 + 2 * torch.rand(width, generator=random)))
    return found


def weight(rows: int, columns: int, seed: int, spikes: int = 0) -> Tensor:
    random = torch.Generator().manual_seed(100 + seed)
    W = torch.randn(rows, columns, generator=random)
    W.view(-1)[:spikes] *= 20
    return W


def model(allocator: Allocator, spikes: int = 6) -> Allocator:
    """Shows three blocks of two layers; the middle one has `spikes` outliers."""
    for block in range(3):
        for part, (rows, columns) in enumerate(((24, 16), (18, 31))):
            W = weight(rows, columns, 2 * block + part, spikes if block == 1 else 0)
            allocator.add(f"{block}.{part}", f"block {block}", W, statistics(columns, 7))
    return allocator


@every_allocator
@settings(max_examples=40, deadline=None)
@given(sparsity=st.floats(0.01, 0.99))
def test_the_budget_is_met_to_the_weight_and_no_layer_leaves_its_bounds(kind: type[Allocator], sparsity: float) -> None:
    allocator = model(kind(sparsity))
    counts = allocator.counts()
    assert sum(counts.values()) == round(sparsity * 3 * (24 * 16 + 18 * 31))
    for name, count in counts.items():
        share = count / allocator.sizes[name]
        assert max(0, sparsity - SPREAD) - 0.01 <= share <= min(max(HIGHEST, sparsity), sparsity + SPREAD) + 0.01
        assert 0 <= count <= allocator.sizes[name]


@every_allocator
def test_layers_do_differ(kind: type[Allocator]) -> None:
    allocator = model(kind(0.6))
    shares = [count / allocator.sizes[name] for name, count in allocator.counts().items()]
    assert max(shares) - min(shares) > 0.02


def test_owl_takes_less_from_the_block_with_outliers_by_twice_its_reach() -> None:
    counts = model(ALLOCATORS["owl"](0.6)).counts()
    sizes = {0: 24 * 16, 1: 18 * 31}
    shares = {name: count / sizes[int(name[-1])] for name, count in counts.items()}
    assert min(shares.values()) in (shares["1.0"], shares["1.1"])
    assert shares["1.0"] == pytest.approx(shares["1.1"], abs=0.003)
    assert max(shares.values()) - min(shares.values()) == pytest.approx(0.16, abs=0.005)


def test_alpha_takes_less_from_a_heavy_tail() -> None:
    flat = torch.linalg.qr(weight(32, 32, 0)).Q
    heavy = flat * torch.logspace(0, -2, 32)
    assert hill_exponent(heavy) < hill_exponent(flat + 0.01 * weight(32, 32, 1))
    allocator = ALLOCATORS["alpha"](0.5)
    allocator.add("a", "one", flat + 0.01 * weight(32, 32, 1), None)
    allocator.add("b", "other", heavy, None)
    counts = allocator.counts()
    assert counts["b"] < counts["a"]


def test_the_hill_exponent_of_a_power_law_is_the_one_that_it_was_made_with() -> None:
    # Eigenvalues at the quantiles of a density ~ x^-3 have the survival function x^-2.
    eigenvalues = (torch.arange(1, 2001) / 2001.0) ** -0.5
    assert hill_exponent(torch.diag(eigenvalues.sqrt())) == pytest.approx(3, rel=0.02)


def test_error_spends_the_budget_where_it_costs_least() -> None:
    cheap, dear = weight(20, 20, 0), weight(20, 20, 1)
    cheap[:, :10] *= 1e-3
    known = statistics(20, 3)
    allocator = ALLOCATORS["error"](0.5)
    for name, W in (("cheap", cheap), ("dear", dear)):
        allocator.add(name, name, W, known)
    counts = allocator.counts()
    assert counts["cheap"] > counts["dear"]

    def errors(split: dict[str, int]) -> float:
        total = 0.0
        for name, W in (("cheap", cheap), ("dear", dear)):
            score = (W.abs() * known.norms).flatten()
            pruned = W.flatten().clone()
            pruned[score.argsort()[: split[name]]] = 0
            total += relative_error(W, pruned.view_as(W), known.G)
        return total

    assert errors(counts) < errors({"cheap": 200, "dear": 200})


def test_errors_that_the_loss_feels_more_are_spared() -> None:
    W, known = weight(20, 20, 0), statistics(20, 3)
    plain, weighed = (
        MarginalError(0.5, sensitivity)
        for sensitivity in (None, {"deaf": torch.full((20,), 0.01), "fine": torch.full((20,), 1.0)})
    )
    for allocator in (plain, weighed):
        for name in ("deaf", "fine"):
            allocator.add(name, name, W, known)
    assert weighed.counts()["deaf"] > plain.counts()["deaf"]
    assert sum(weighed.counts().values()) == sum(plain.counts().values()) == 400


def test_the_hull_is_convex_and_below_the_points() -> None:
    points = [(0, 0.0), (1, 3.0), (2, 2.0), (3, 4.0), (4, 4.5), (5, 9.0)]
    assert hull(points) == [(0, 0.0), (2, 2.0), (4, 4.5), (5, 9.0)]


@given(
    shares=st.lists(st.floats(0, 1), min_size=1, max_size=6),
    sizes=st.lists(st.integers(1, 1000), min_size=6, max_size=6),
    sparsity=st.floats(0.1, 0.9),
)
def test_any_wish_is_brought_to_the_budget(shares: list[float], sizes: list[int], sparsity: float) -> None:
    names = [str(index) for index in range(len(shares))]
    size = dict(zip(names, sizes, strict=False))
    total = round(sparsity * sum(size.values()))
    counts = meet(dict(zip(names, shares, strict=True)), size, total, 0.0, 1.0)
    assert sum(counts.values()) == total
    assert all(0 <= counts[name] <= size[name] for name in names)
