"""Refit against the least squares problem of each row, solved by itself in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from secateur.allocation.amounts import Amount
from secateur.calibration.statistics import Needs, Statistics
from secateur.linear_algebra import damped, relative_error
from secateur.solvers.base import Problem
from secateur.solvers.refit import Refit, refit
from secateur.solvers.sparsegpt import SparseGPT

CPU = torch.device("cpu")


def statistics(inputs: int, seed: int, tokens: int | None = None) -> Statistics:
    """Returns those of inputs that are alike, of different sizes."""
    random = torch.Generator().manual_seed(seed)
    X = torch.randn(tokens or 4 * inputs, inputs, generator=random) + torch.randn(
        tokens or 4 * inputs, 1, generator=random
    )
    found = Statistics.empty(inputs, Needs.GRAM, CPU)
    found.add(X * (0.3 + torch.rand(inputs, generator=random)))
    return found


def problem(outputs: int, inputs: int, seed: int, share: float = 0.5, damping: float = 0.01) -> Problem:
    random = torch.Generator().manual_seed(1000 + seed)
    W = torch.randn(outputs, inputs, generator=random)
    keep = torch.rand(outputs, inputs, generator=random) >= share
    return Problem("layer", W, statistics(inputs, seed), Amount(remove=0), keep, damping)


def least_squares(one: Problem) -> Tensor:
    """Returns each row's best weights on its support: H_SS b = (w H)_S."""
    H = damped(one.statistics.G.double(), one.damping)
    B = torch.zeros_like(one.W, dtype=torch.float64)
    for row, (w, keep) in enumerate(zip(one.W.double(), one.keep, strict=True)):
        support = keep.nonzero().flatten()
        B[row, support] = torch.linalg.solve(H[support][:, support], (w @ H)[support])
    return B


def error(one: Problem, B: Tensor) -> Tensor:
    """Returns each row's damped error (w - b) H (w - b)ᵀ, float64."""
    H = damped(one.statistics.G.double(), one.damping)
    D = one.W.double() - B.double()
    return (D @ H * D).sum(1)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("outputs", "inputs"), [(1, 1), (5, 12), (20, 40)])
@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_run_to_the_end_it_is_the_least_squares_solution_of_every_row(
    outputs: int, inputs: int, share: float, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("secateur.solvers.refit.ITERATIONS", 300)
    monkeypatch.setattr("secateur.solvers.refit.TOLERANCE", 1e-7)
    one = problem(outputs, inputs, seed, share)
    torch.testing.assert_close(Refit().solve(one).W.double(), least_squares(one), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("seed", range(6))
def test_as_it_is_it_comes_within_a_percent_of_the_least_error(seed: int) -> None:
    one = problem(20, 40, seed)
    best = float(error(one, least_squares(one)).sum())
    assert float(error(one, Refit().solve(one).W).sum()) <= 1.01 * best


@settings(max_examples=60, deadline=None)
@given(
    outputs=st.integers(1, 8),
    inputs=st.integers(1, 24),
    share=st.floats(0, 1),
    exponent=st.floats(-4, 0),
    seed=st.integers(0, 9),
)
def test_no_row_is_ever_worse_than_the_mask_alone(
    outputs: int, inputs: int, share: float, exponent: float, seed: int
) -> None:
    one = problem(outputs, inputs, seed, share, damping=10**exponent)
    before, after = error(one, one.W * one.keep), error(one, Refit().solve(one).W)
    # Float32 rounds what is near 0 of a row's whole energy.
    rounding = 1e-5 * error(one, torch.zeros_like(one.W))
    assert bool((after <= before + rounding).all())


def test_every_iteration_improves_on_the_one_before(monkeypatch: pytest.MonkeyPatch) -> None:
    one = problem(10, 40, seed=0)
    errors = [float(error(one, one.W * one.keep).sum())]
    for iterations in range(1, 9):
        monkeypatch.setattr("secateur.solvers.refit.ITERATIONS", iterations)
        errors.append(float(error(one, Refit().solve(one).W).sum()))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.9 * errors[0]


def test_what_another_solver_left_is_never_made_worse() -> None:
    for seed in range(6):
        one = problem(10, 40, seed)
        start = SparseGPT().solve(one).W
        H = damped(one.statistics.G, one.damping)
        assert float(error(one, refit(one.W, start, one.keep, H)).sum()) <= float(error(one, start).sum())


def test_the_undamped_error_falls_as_well() -> None:
    for seed in range(6):
        one = problem(10, 40, seed)
        G = one.statistics.G
        assert relative_error(one.W, Refit().solve(one).W, G) < relative_error(one.W, one.W * one.keep, G)


def test_rows_without_a_weight_and_rows_with_all_stay_as_they_are() -> None:
    one = problem(6, 20, seed=1)
    one.keep[1] = False
    one.keep[4] = True
    solution = Refit().solve(one)
    assert (solution.W[1] == 0).all()
    assert torch.equal(solution.W[4], one.W[4])


def test_an_input_that_never_fires_neither_moves_nor_helps() -> None:
    one = problem(6, 20, seed=2)
    one.statistics.gram[:, 3] = 0
    one.statistics.gram[3] = 0
    solution = Refit().solve(one)
    assert torch.equal(solution.W[:, 3], (one.W * one.keep)[:, 3])
    assert torch.isfinite(solution.W).all()


def test_independent_inputs_have_nothing_to_make_up_for() -> None:
    one = problem(6, 20, seed=3)
    one.statistics.gram.copy_(torch.diag(1 + torch.rand(20)))
    assert torch.equal(Refit().solve(one).W, one.W * one.keep)


def test_two_inputs_that_are_always_equal_stand_in_for_each_other() -> None:
    found = Statistics.empty(2, Needs.GRAM, CPU)
    found.add(torch.randn(50, 1).expand(50, 2))
    one = Problem("layer", torch.tensor([[1.0, 2.0]]), found, Amount(remove=1), torch.tensor([[True, False]]), 1e-6)
    torch.testing.assert_close(Refit().solve(one).W, torch.tensor([[3.0, 0.0]]), rtol=1e-4, atol=0)


def test_the_damping_that_was_asked_for_is_reported() -> None:
    assert Refit().solve(problem(3, 8, seed=0, damping=0.05)).damping == 0.05
