"""Factors of one layer, held against other ways to find them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from secateur.compression.low_rank import (
    break_even,
    energies,
    low_rank,
    ranks_by_error,
    sparse_and_low_rank,
)
from secateur.linear_algebra import relative_error

SHAPES = [(12, 8), (8, 12), (16, 16)]


def layer(out: int, inputs: int, seed: int = 0, tokens: int = 200) -> tuple[Tensor, Tensor, Tensor]:
    """Returns W, X and G = X Xᵀ of inputs that depend on each other."""
    random = torch.Generator().manual_seed(seed)
    W = torch.randn(out, inputs, generator=random)
    X = torch.randn(inputs, inputs, generator=random) @ torch.randn(inputs, tokens, generator=random)
    return W, X, X @ X.T


@pytest.mark.parametrize(("out", "inputs"), SHAPES)
@pytest.mark.parametrize("rank", [1, 3, 7])
def test_factors_are_the_best_of_their_rank(out: int, inputs: int, rank: int) -> None:
    """Eckart-Young: what is lost is what the singular values of W X beyond the rank carry."""
    W, X, G = layer(out, inputs)
    S = torch.linalg.svdvals((W @ X).double())
    factors = low_rank(W, G, rank)
    assert factors.up.shape == (out, rank)
    assert factors.down.shape == (rank, inputs)
    least = float(S[rank:].square().sum() / S.square().sum())
    assert relative_error(W, factors.W, G) == pytest.approx(least, rel=2e-3, abs=1e-6)


@pytest.mark.parametrize(("out", "inputs"), SHAPES)
def test_energies_are_the_squared_singular_values_of_the_outputs(out: int, inputs: int) -> None:
    W, X, G = layer(out, inputs)
    values, U = energies(W, G)
    k = min(out, inputs)
    assert U.shape == (out, k)
    torch.testing.assert_close(U.T @ U, torch.eye(k), atol=1e-4, rtol=0)
    S = torch.linalg.svdvals((W @ X).double()).float().square()[:k]
    torch.testing.assert_close(values, S, rtol=0.02, atol=0.02 * float(S.mean()))  # a wide side is damped a little


def test_inputs_that_are_always_zero_leave_finite_factors() -> None:
    for out, inputs in SHAPES:
        W, X, _ = layer(out, inputs)
        X[: inputs // 2] = 0
        G = X @ X.T
        factors = low_rank(W, G, 4)
        assert bool(torch.isfinite(factors.W).all())
        assert relative_error(W, factors.W, G) <= 1


@given(out=st.integers(2, 40), inputs=st.integers(2, 40))
def test_at_break_even_factors_are_just_smaller(out: int, inputs: int) -> None:
    rank = break_even((out, inputs))
    assert rank * (out + inputs) < out * inputs <= (rank + 1) * (out + inputs)


@settings(max_examples=30, deadline=None)
@given(share=st.floats(0.3, 0.95), seed=st.integers(0, 100))
def test_ranks_by_error_keep_the_budget_and_no_swap_is_better(share: float, seed: int) -> None:
    shapes = {"a": (12, 8), "b": (8, 12), "c": (16, 16), "d": (10, 30)}
    spectra = {name: energies(*layer(*shape, seed + n)[::2])[0] for n, (name, shape) in enumerate(shapes.items())}
    budget = round(share * sum(out * inputs for out, inputs in shapes.values()))
    ranks = ranks_by_error(spectra, shapes, budget)
    spent = sum(
        shapes[name][0] * shapes[name][1] if rank is None else rank * sum(shapes[name]) for name, rank in ranks.items()
    )
    assert spent <= budget
    partial = {name: rank for name, rank in ranks.items() if rank is not None}

    def worth(name: str, place: int) -> float:
        return float(spectra[name][place] / spectra[name].sum() / sum(shapes[name]))

    for one, rank in partial.items():
        for other, more in partial.items():
            if rank > 1 and more < break_even(shapes[other]):  # one's last direction against other's next
                fits = spent - sum(shapes[one]) + sum(shapes[other]) <= budget
                assert not fits or worth(one, rank - 1) >= worth(other, more) or sum(shapes[other]) > sum(shapes[one])


@pytest.mark.parametrize(("out", "inputs"), SHAPES)
def test_single_weights_beside_factors_lose_less_than_as_many_factors(out: int, inputs: int) -> None:
    """A matrix of few directions and a few large weights is what the form is for."""
    random = torch.Generator().manual_seed(1)
    W = torch.randn(out, 2, generator=random) @ torch.randn(2, inputs, generator=random)
    places = torch.randperm(out * inputs, generator=random)[:6]
    W.view(-1)[places] += 10
    _, _, G = layer(out, inputs)
    found = sparse_and_low_rank(W, G, 2, 6, 8)
    assert found.kept is not None
    assert int((found.kept != 0).sum()) <= 6
    assert relative_error(W, found.W, G) < 0.5 * relative_error(W, low_rank(W, G, 3).W, G)


@pytest.mark.parametrize(("out", "inputs"), SHAPES)
def test_more_rounds_are_never_worse(out: int, inputs: int) -> None:
    W, _, G = layer(out, inputs)
    errors = [relative_error(W, sparse_and_low_rank(W, G, 2, 20, rounds).W, G) for rounds in (1, 2, 4, 8)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < relative_error(W, low_rank(W, G, 2).W, G)
