"""SparseGPT against the paper: a slow reference that inverts a matrix for each column, in float64."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from secateur.allocation.amounts import Amount, Pattern, Threshold, row_counts
from secateur.calibration.statistics import Needs, Statistics
from secateur.errors import SolverError
from secateur.linear_algebra import DAMPING, relative_error
from secateur.solvers.base import Problem, Solution
from secateur.solvers.sparsegpt import TILE, SparseGPT

CPU = torch.device("cpu")


def statistics(X: Tensor) -> Statistics:
    found = Statistics.empty(X.shape[1], Needs.GRAM, CPU)
    found.add(X)
    return found


def of_gram(G: Tensor) -> Statistics:
    width = G.shape[0]
    return Statistics(1, torch.zeros(width), torch.zeros(width), G)


def correlated(inputs: int, seed: int, tokens: int | None = None) -> Tensor:
    """X: (tokens, inputs), neighbours alike, of different sizes."""
    random = torch.Generator().manual_seed(seed)
    X = torch.randn(tokens or 3 * inputs, inputs, generator=random)
    X[:, 1:] += 0.8 * X[:, :-1]
    return X * (0.5 + torch.rand(inputs, generator=random))


def problem(outputs: int, inputs: int, amount: Amount, seed: int = 0, block_size: int = 128) -> Problem:
    W = torch.randn(outputs, inputs, generator=torch.Generator().manual_seed(100 + seed))
    return Problem("layer", W, statistics(correlated(inputs, seed)), amount, block_size=block_size)


def solve(one: Problem) -> Solution:
    return SparseGPT().solve(one)


class Reference:
    """Algorithm 1 without its shortcuts.

    No Cholesky factor: the inverse of what is left of H is computed anew for each column. No lazy blocks:
    each removal updates all later columns at once. (Frantar and Alistarh 2023, eq. 3 and 4.)
    """

    def __init__(self, one: Problem) -> None:
        self.W = one.W.double().clone()
        G = one.statistics.G.double()
        damping = DAMPING if one.damping is None else one.damping
        H = G + damping * G.diagonal().mean() * torch.eye(len(G), dtype=torch.float64)
        self.inverses = [torch.linalg.inv(H[j:, j:]) for j in range(len(H))]
        self.gone = torch.zeros(self.W.shape, dtype=torch.bool)

    def saliency(self, start: int, end: int) -> Tensor:
        return torch.stack([self.W[:, j] ** 2 / self.inverses[j][0, 0] for j in range(start, end)], dim=1)

    def remove(self, j: int) -> None:
        inverse = self.inverses[j]
        error = self.W[:, j] * self.gone[:, j] / inverse[0, 0]
        self.W[:, j:] -= error[:, None] * inverse[0]
        self.W[self.gone[:, j], j] = 0

    def by_count(self, remove: int, block_size: int, tile: int) -> None:
        """Chooses for a block when it is reached, and anew for what is left of it every `tile` columns."""
        outputs, inputs = self.W.shape
        for start in range(0, inputs, block_size):
            end = min(start + block_size, inputs)
            share = round(remove * end / inputs) - int(self.gone.sum())
            for j in range(start, end):
                if (j - start) % tile == 0:
                    left = share - int(self.gone[:, start:j].sum())
                    flat = self.saliency(j, end).flatten()
                    rest = torch.zeros_like(flat, dtype=torch.bool)
                    rest[flat.argsort()[:left]] = True
                    self.gone[:, j:end] = rest.view(outputs, end - j)
                self.remove(j)

    def by_row(self, counts: list[int], block_size: int) -> None:
        inputs = self.W.shape[1]
        for start in range(0, inputs, block_size):
            end = min(start + block_size, inputs)
            saliency = self.saliency(start, end)
            for i, count in enumerate(counts):
                share = round(count * end / inputs) - int(self.gone[i].sum())
                self.gone[i, start + saliency[i].argsort()[:share]] = True
            for j in range(start, end):
                self.remove(j)

    def by_pattern(self, n: int, m: int) -> None:
        for start in range(0, self.W.shape[1], m):
            saliency = self.saliency(start, start + m)
            for i, row in enumerate(saliency):
                self.gone[i, start + row.argsort()[: m - n]] = True
            for j in range(start, start + m):
                self.remove(j)

    def by_mask(self, gone: Tensor) -> None:
        self.gone = gone
        for j in range(self.W.shape[1]):
            self.remove(j)


def assert_equal(solution: Solution, reference: Reference) -> None:
    assert torch.equal(~solution.keep, reference.gone)
    torch.testing.assert_close(solution.W.double(), reference.W, rtol=1e-3, atol=1e-4)


BLOCKS = pytest.mark.parametrize(
    ("inputs", "block_size"),
    [
        (12, 128),  # one block
        (12, 1),  # a block per column
        (30, 7),  # blocks that don't divide the width
        (TILE, 128),
        (TILE + 1, TILE),
        (2 * TILE, 128),
        (70, 48),  # blocks that tiles don't divide
        (100, 64),
        (131, 128),
    ],
)


@BLOCKS
@pytest.mark.parametrize("sparsity", [0.1, 0.5, 0.83])
def test_a_count_is_solved_as_in_the_paper_where_a_tile_holds_a_block(
    inputs: int, block_size: int, sparsity: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("secateur.solvers.sparsegpt.TILE", 1000)
    remove = round(sparsity * 6 * inputs)
    one = problem(6, inputs, Amount(remove=remove), seed=inputs, block_size=block_size)
    reference = Reference(one)
    reference.by_count(remove, block_size, tile=1000)
    assert int(reference.gone.sum()) == remove
    assert_equal(solve(one), reference)


@BLOCKS
@pytest.mark.parametrize("sparsity", [0.1, 0.5, 0.83])
def test_what_is_left_of_a_block_is_chosen_anew_at_every_tile(inputs: int, block_size: int, sparsity: float) -> None:
    remove = round(sparsity * 6 * inputs)
    one = problem(6, inputs, Amount(remove=remove), seed=inputs, block_size=block_size)
    reference = Reference(one)
    reference.by_count(remove, block_size, TILE)
    assert int(reference.gone.sum()) == remove
    assert_equal(solve(one), reference)


@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 4), (4, 8), (3, 7), (1, 2)])
@pytest.mark.parametrize("block_size", [1, 16, 30, 128])
def test_a_pattern_is_solved_as_in_the_paper_whatever_the_blocks(n: int, m: int, block_size: int) -> None:
    one = problem(5, 56, Amount(pattern=Pattern(n, m)), seed=m, block_size=block_size)
    reference = Reference(one)
    reference.by_pattern(n, m)
    assert_equal(solve(one), reference)


@pytest.mark.parametrize(("inputs", "block_size"), [(24, 128), (40, 16), (67, 33)])
def test_counts_per_output_are_solved_as_in_the_paper(
    inputs: int, block_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("secateur.solvers.sparsegpt.TILE", 1000)
    remove = round(0.55 * 7 * inputs) + 1
    one = problem(7, inputs, Amount(remove=remove, per="output"), seed=inputs, block_size=block_size)
    reference = Reference(one)
    counts = row_counts(remove, reference.saliency(0, inputs)).tolist()
    reference.by_row(counts, block_size)
    assert reference.gone.sum(1).tolist() == counts
    assert_equal(solve(one), reference)


@pytest.mark.parametrize(("inputs", "block_size"), [(20, 128), (45, 20), (70, 128)])
def test_a_given_mask_is_solved_as_in_the_paper(inputs: int, block_size: int) -> None:
    one = problem(6, inputs, Amount(remove=0), seed=inputs, block_size=block_size)
    gone = torch.rand(6, inputs, generator=torch.Generator().manual_seed(inputs)) < 0.5
    reference = Reference(one)
    reference.by_mask(gone)
    assert_equal(solve(replace(one, keep=~gone)), reference)


def test_a_threshold_is_held_against_the_saliency_before_any_update() -> None:
    one = problem(6, 40, Amount(threshold=Threshold("percentile", 40)), block_size=16)
    reference = Reference(one)
    saliency = reference.saliency(0, 40)
    reference.by_mask(saliency < saliency.quantile(0.4))
    assert int(reference.gone.sum()) == 96
    assert_equal(solve(one), reference)


def test_the_block_size_does_not_change_what_a_given_mask_comes_to() -> None:
    one = problem(6, 70, Amount(remove=0))
    keep = torch.rand(6, 70, generator=torch.Generator().manual_seed(1)) < 0.5
    whole = solve(replace(one, keep=keep, block_size=70))
    for block_size in (1, 7, 33, 64):
        torch.testing.assert_close(solve(replace(one, keep=keep, block_size=block_size)).W, whole.W)


@settings(max_examples=60, deadline=None)
@given(
    outputs=st.integers(1, 9),
    inputs=st.integers(1, 45),
    share=st.floats(0, 1),
    block_size=st.integers(1, 50),
    per=st.sampled_from(["layer", "output"]),
)
def test_any_count_is_met_exactly(outputs: int, inputs: int, share: float, block_size: int, per: str) -> None:
    remove = round(share * outputs * inputs)
    solution = solve(problem(outputs, inputs, Amount(remove=remove, per=per), block_size=block_size))
    zeros = (solution.W == 0).sum(1)
    assert torch.equal(solution.W == 0, ~solution.keep)
    assert int(zeros.sum()) == remove
    assert per == "layer" or int(zeros.max() - zeros.min()) <= 1


@settings(max_examples=60, deadline=None)
@given(
    outputs=st.integers(2, 8),
    inputs=st.integers(4, 40),
    share=st.floats(0, 1),
    least=st.integers(1, 3),
    block_size=st.integers(1, 50),
)
def test_a_minimum_per_output_holds_with_the_count_still_exact(
    outputs: int, inputs: int, share: float, least: int, block_size: int
) -> None:
    # Whatever the scores, this much isn't guarded.
    room = outputs * inputs - outputs * least - inputs
    remove = max(0, round(share * room))
    keep = solve(problem(outputs, inputs, Amount(remove=remove, min_per_output=least), block_size=block_size)).keep
    assert int((~keep).sum()) == remove
    assert int(keep.sum(1).min()) >= least
    assert int(keep.sum(0).min()) >= 1


@pytest.mark.parametrize("block_size", [5, 16, 128])
def test_a_minimum_per_output_holds_with_equal_counts_per_output(block_size: int) -> None:
    amount = Amount(remove=12 * 30 + 5, min_per_output=4, per="output")
    keep = solve(problem(12, 48, amount, block_size=block_size)).keep
    assert sorted((~keep).sum(1).tolist()) == [30] * 7 + [31] * 5
    assert int(keep.sum(0).min()) >= 1


@pytest.mark.parametrize("per", ["layer", "output"])
def test_blocks_share_a_count_evenly(per: str) -> None:
    keep = solve(problem(8, 60, Amount(remove=240, per=per), block_size=20)).keep
    by_block = (~keep).view(8, 3, 20).sum((0, 2))
    assert by_block.tolist() == [80, 80, 80]


DEAD = [1, 2, 17, 33, 39]


def dead_problem(amount: Amount) -> Problem:
    X = correlated(40, seed=4)
    X[:, DEAD] = 0
    W = 1 + torch.rand(6, 40, generator=torch.Generator().manual_seed(4))
    W[:, DEAD] *= 100
    return Problem("layer", W, statistics(X), amount)


@pytest.mark.parametrize(
    "amount",
    [Amount(remove=30), Amount(remove=150), Amount(remove=6 * 5, per="output"), Amount(remove=99, per="output")],
)
def test_inputs_that_never_fire_go_first_however_large_their_weights(amount: Amount) -> None:
    solution = solve(dead_problem(amount))
    assert (solution.W[:, DEAD] == 0).all()
    assert torch.isfinite(solution.W).all()
    assert int((solution.W == 0).sum()) == amount.remove


def test_removing_inputs_that_never_fire_costs_nothing_and_moves_nothing() -> None:
    one = dead_problem(Amount(remove=30))
    solution = solve(one)
    assert torch.equal(solution.W * solution.keep, one.W * solution.keep)
    assert relative_error(one.W, solution.W, one.statistics.G) == 0


def test_in_a_pattern_inputs_that_never_fire_go_first() -> None:
    solution = solve(dead_problem(Amount(pattern=Pattern(2, 4))))
    assert (solution.W[:, DEAD] == 0).all()
    assert torch.isfinite(solution.W).all()


@pytest.mark.parametrize("amount", [Amount(remove=12), Amount(pattern=Pattern(1, 2)), Amount(remove=9, per="output")])
def test_a_layer_that_never_saw_a_signal_still_meets_its_amount(amount: Amount) -> None:
    one = Problem("layer", torch.randn(3, 8), statistics(torch.zeros(5, 8)), amount)
    solution = solve(one)
    assert int((solution.W == 0).sum()) == (amount.remove or 12)
    assert torch.equal(solution.W[solution.keep], one.W[solution.keep])


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("amount", [Amount(remove=200), Amount(remove=320), Amount(pattern=Pattern(2, 4))], ids=str)
def test_updates_leave_less_error_than_the_same_mask_alone(amount: Amount, seed: int) -> None:
    one = problem(10, 40, amount, seed=seed)
    solution, G = solve(one), one.statistics.G
    assert relative_error(one.W, solution.W, G) < relative_error(one.W, one.W * solution.keep, G)


def test_the_error_is_the_sum_of_the_errors_of_the_steps() -> None:
    one = problem(4, 30, Amount(remove=60))
    solution, reference = solve(one), Reference(one)
    H = torch.linalg.inv(reference.inverses[0])
    steps = 0.0
    for j in range(30):
        reference.gone[:, j] = ~solution.keep[:, j]
        removed = reference.W[:, j] * reference.gone[:, j]
        steps += float((removed**2 / reference.inverses[j][0, 0]).sum())
        reference.remove(j)
    D = one.W.double() - solution.W.double()
    assert float((D @ H * D).sum()) == pytest.approx(steps, rel=1e-4)


def indefinite(size: float) -> Tensor:
    """A Gram matrix that can't be one: ones on the diagonal, its lowest eigenvalue 1 - size."""
    G = torch.eye(8)
    G[0, 1] = G[1, 0] = size
    return G


@pytest.mark.parametrize(("size", "damping"), [(0.9, 0.01), (1.05, 0.1), (1.5, 1.0), (6, 10), (50, 100)])
def test_damping_rises_tenfold_until_the_gram_matrix_is_positive_definite(size: float, damping: float) -> None:
    one = Problem("layer", torch.randn(3, 8), of_gram(indefinite(size)), Amount(remove=12))
    solution = solve(one)
    assert solution.damping == pytest.approx(damping)
    assert int((solution.W == 0).sum()) == 12


def test_the_damping_that_was_asked_for_is_where_it_starts() -> None:
    one = Problem("layer", torch.randn(3, 8), of_gram(indefinite(0.5)), Amount(remove=12))
    assert solve(one).damping == DAMPING
    assert solve(replace(one, damping=0.5)).damping == 0.5
    assert solve(replace(one, damping=1e-4)).damping == 1e-4


def test_a_gram_matrix_of_fewer_tokens_than_inputs_is_solved_as_in_the_paper() -> None:
    W = torch.randn(6, 30, generator=torch.Generator().manual_seed(0))
    one = Problem("layer", W, statistics(correlated(30, seed=1, tokens=4)), Amount(remove=90), block_size=10)
    reference = Reference(one)
    reference.by_count(90, 10, TILE)
    solution = solve(one)
    assert solution.damping == DAMPING
    assert_equal(solution, reference)


@settings(max_examples=60, deadline=None)
@given(inputs=st.integers(2, 40), tokens=st.integers(1, 40), exponent=st.floats(-8, -1), seed=st.integers(0, 99))
def test_however_close_to_singular_there_is_a_solution_at_the_damping_that_is_reported(
    inputs: int, tokens: int, exponent: float, seed: int
) -> None:
    random = torch.Generator().manual_seed(seed)
    X = torch.randn(tokens, inputs, generator=random) * 10 ** torch.randn(inputs, generator=random)
    damping = 10**exponent
    W = torch.randn(4, inputs, generator=random)
    solution = solve(Problem("layer", W, statistics(X), Amount(remove=2 * inputs), damping=damping))
    assert torch.isfinite(solution.W).all()
    assert int((solution.W == 0).sum()) == 2 * inputs
    assert any(solution.damping == pytest.approx(damping * 10**step) for step in range(5))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("place", [(3, 3), (5, 2), (0, 0)])
def test_a_gram_matrix_that_is_not_finite_is_an_error_that_names_the_layer(
    value: float, place: tuple[int, int]
) -> None:
    G = indefinite(0.5)
    G[place] = value
    with pytest.raises(SolverError, match="layer: the Gram matrix isn't positive definite"):
        solve(Problem("layer", torch.randn(3, 8), of_gram(G), Amount(remove=12)))


@pytest.mark.parametrize("G", [-torch.eye(8), indefinite(1e4)])
def test_a_gram_matrix_that_no_damping_mends_is_an_error_that_names_the_layer(G: Tensor) -> None:
    with pytest.raises(SolverError, match=r"layer: .*even with damping 100; use more or other calibration data"):
        solve(Problem("layer", torch.randn(3, 8), of_gram(G), Amount(remove=12)))


@pytest.mark.parametrize(
    "amount",
    [Amount(remove=700), Amount(remove=700, per="output"), Amount(pattern=Pattern(2, 4))],
    ids=["layer", "output", "2:4"],
)
def test_what_is_zero_stays_zero(amount: Amount) -> None:
    """Also where a whole block of columns is zero, and a group has more zeros than the pattern asks for."""
    random = torch.Generator().manual_seed(5)
    W = torch.randn(16, 64, generator=random)
    W[:, 8:16] = 0
    W[torch.rand(W.shape, generator=random) < 0.3] = 0
    statistics = Statistics.empty(64, Needs.GRAM, torch.device("cpu"))
    statistics.add(torch.randn(256, 64, generator=random) @ torch.randn(64, 64, generator=random))
    solution = SparseGPT().solve(Problem("layer", W, statistics, amount, block_size=16))
    assert bool((solution.W[W == 0] == 0).all())
    assert not bool(solution.keep[W == 0].any())
    if amount.remove is not None:
        assert int((~solution.keep).sum()) == 700
    else:
        assert int(solution.keep.reshape(-1, 4).sum(1).max()) == 2
