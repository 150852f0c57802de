"""What every registered solver promises."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from secateur.allocation.amounts import Amount, Pattern, Threshold
from secateur.allocation.selection import keep_mask
from secateur.calibration.statistics import Needs, Statistics
from secateur.errors import PatternError, SolverError, UsageError
from secateur.linear_algebra import relative_error, row_errors
from secateur.solvers import SOLVERS, Problem, Solution, Solver, chain_named, solve_chain, solver_named

OUT, IN, TOKENS = 10, 24, 90
CPU = torch.device("cpu")

CHOOSING = {name: solver for name, solver in SOLVERS.items() if solver.chooses}
MASKED = {name: solver for name, solver in SOLVERS.items() if not solver.chooses}
FIXED = {name: solver for name, solver in SOLVERS.items() if not solver.moves}
MOVING = {name: solver for name, solver in SOLVERS.items() if solver.moves}
WITH_GRAM = {name: solver for name, solver in SOLVERS.items() if Needs.GRAM in solver.needs}

every_solver = pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS)
every_choosing_solver = pytest.mark.parametrize("solver", CHOOSING.values(), ids=CHOOSING)
every_masked_solver = pytest.mark.parametrize("solver", MASKED.values(), ids=MASKED)
every_fixed_solver = pytest.mark.parametrize("solver", FIXED.values(), ids=FIXED)
every_moving_solver = pytest.mark.parametrize("solver", MOVING.values(), ids=MOVING)
every_solver_with_gram = pytest.mark.parametrize("solver", WITH_GRAM.values(), ids=WITH_GRAM)

AMOUNTS = {
    "half": Amount(remove=120),
    "an odd count": Amount(remove=77),
    "one": Amount(remove=1),
    "all but one": Amount(remove=OUT * IN - 1),
    "per output": Amount(remove=125, per="output"),
    "keep some of each": Amount(remove=200, min_per_output=2),
    "2:4": Amount(pattern=Pattern(2, 4)),
    "1:3": Amount(pattern=Pattern(1, 3)),
    "5:8": Amount(pattern=Pattern(5, 8)),
    "a threshold": Amount(threshold=Threshold("percentile", 40)),
}
every_amount = pytest.mark.parametrize("amount", AMOUNTS.values(), ids=AMOUNTS)


def statistics(needs: Needs, seed: int = 0) -> Statistics | None:
    """Returns statistics of correlated inputs: what is declared, and nothing more."""
    if not needs:
        return None
    random = torch.Generator().manual_seed(seed)
    mixed = torch.randn(TOKENS, IN, generator=random) @ torch.randn(IN, IN, generator=random)
    found = Statistics.empty(IN, needs, CPU)
    found.add(mixed)
    return found


def problem(solver: Solver, amount: Amount, masked: bool, seed: int = 0) -> Problem:
    W = torch.randn(OUT, IN, generator=torch.Generator().manual_seed(seed))
    keep = keep_mask(W.abs(), amount, "layer")[0] if masked else None
    return Problem("layer", W, statistics(solver.needs, seed), amount, keep, block_size=16)


def zeros_expected(amount: Amount, keep: Tensor | None) -> int:
    if amount.pattern is not None:
        return OUT * IN // amount.pattern.m * (amount.pattern.m - amount.pattern.n)
    return amount.remove if amount.remove is not None else int((~keep).sum())


def zeros_per_group(keep: Tensor, pattern: Pattern) -> set[int]:
    return set((~keep).reshape(-1, pattern.m).sum(1).tolist())


def test_the_registry_knows_each_solver_by_its_name() -> None:
    for name, solver in SOLVERS.items():
        assert solver.name == name
        assert solver_named(name) is solver
        assert solver.about


def test_an_unknown_solver_is_refused_with_the_nearest_and_the_known_ones() -> None:
    with pytest.raises(UsageError) as error:
        solver_named("sparse-gpt")
    assert "'sparse-gpt'" in str(error.value)
    assert "Did you mean 'sparsegpt'?" in str(error.value)
    assert all(name in str(error.value) for name in SOLVERS)


@every_fixed_solver
@every_amount
def test_a_mask_that_was_given_comes_back_as_it_was_and_nothing_else_is_zero(solver: Solver, amount: Amount) -> None:
    given_problem = problem(solver, amount, masked=True)
    solution = solver.solve(given_problem)
    assert torch.equal(solution.keep, given_problem.keep)
    assert torch.equal(solution.W != 0, given_problem.keep)


@every_moving_solver
@every_amount
def test_a_moved_mask_keeps_each_rows_count_and_each_groups_and_no_input_dies(solver: Solver, amount: Amount) -> None:
    given_problem = problem(solver, amount, masked=True)
    solution = solver.solve(given_problem)
    assert torch.equal(solution.W != 0, solution.keep)
    assert torch.equal(solution.keep.sum(1), given_problem.keep.sum(1))
    if amount.pattern is not None:
        groups = (solution.keep.view(OUT, -1, amount.pattern.m), given_problem.keep.view(OUT, -1, amount.pattern.m))
        assert torch.equal(groups[0].sum(2), groups[1].sum(2))
    if amount.min_per_output:
        assert int(solution.keep.sum(0).min()) >= 1


@every_moving_solver
def test_a_moving_solver_does_move_something(solver: Solver) -> None:
    first = problem(solver, AMOUNTS["half"], masked=True)
    assert not torch.equal(solver.solve(first).keep, first.keep)


@every_moving_solver
def test_what_was_zero_in_the_dense_weights_never_comes_back(solver: Solver) -> None:
    first = problem(solver, AMOUNTS["half"], masked=True)
    gone = torch.rand(OUT, IN, generator=torch.Generator().manual_seed(9)) < 0.3
    solution = solver.solve(replace(first, W=first.W * ~gone, keep=first.keep & ~gone))
    assert not bool((solution.keep & gone).any())


@every_choosing_solver
@every_amount
def test_a_mask_that_the_solver_chooses_meets_the_amount_exactly(solver: Solver, amount: Amount) -> None:
    solution = solver.solve(problem(solver, amount, masked=False))
    assert torch.equal(solution.W != 0, solution.keep)
    assert int((solution.W == 0).sum()) == zeros_expected(amount, solution.keep)
    if amount.pattern is not None:
        assert zeros_per_group(solution.keep, amount.pattern) == {amount.pattern.m - amount.pattern.n}
    if amount.per == "output":
        assert set((~solution.keep).sum(1).tolist()) == {12, 13}
    if amount.min_per_output:
        assert int(solution.keep.sum(1).min()) >= amount.min_per_output
        assert int(solution.keep.sum(0).min()) >= 1


@every_solver
@pytest.mark.parametrize("masked", [True, False])
def test_a_solution_has_the_weights_shape_and_dtype_and_is_finite(solver: Solver, masked: bool) -> None:
    if not (masked or solver.chooses):
        return
    solution = solver.solve(problem(solver, AMOUNTS["half"], masked))
    assert solution.W.shape == solution.keep.shape == (OUT, IN)
    assert (solution.W.dtype, solution.keep.dtype) == (torch.float32, torch.bool)
    assert torch.isfinite(solution.W).all()


@every_solver
@pytest.mark.parametrize("name", ["half", "2:4", "a threshold", "per output", "keep some of each"])
def test_the_problem_is_left_as_it_was_and_solved_the_same_way_again(solver: Solver, name: str) -> None:
    for masked in (True, False) if solver.chooses else (True,):
        first = problem(solver, AMOUNTS[name], masked)
        one, other = solver.solve(first), solver.solve(first)
        assert torch.equal(one.W, other.W)
        assert torch.equal(one.keep, other.keep)
        untouched = problem(solver, AMOUNTS[name], masked)
        assert torch.equal(first.W, untouched.W)
        if masked:
            assert torch.equal(first.keep, untouched.keep)
        if first.statistics is not None:
            assert torch.equal(first.statistics.G, untouched.statistics.G)
            assert torch.equal(first.statistics.total, untouched.statistics.total)


@every_solver
def test_a_solution_shares_no_memory_with_the_weights(solver: Solver) -> None:
    first = problem(solver, AMOUNTS["half"], masked=True)
    solver.solve(first).W.fill_(7)
    assert torch.equal(first.W, problem(solver, AMOUNTS["half"], masked=True).W)


@every_solver_with_gram
@pytest.mark.parametrize("seed", range(8))
def test_no_solver_leaves_a_row_worse_than_it_was_given(solver: Solver, seed: int) -> None:
    for name in ("half", "2:4", "per output"):
        first = problem(solver, AMOUNTS[name], masked=True, seed=seed)
        solution, (step,) = solve_chain([solver], first)
        G = first.statistics.G
        before = row_errors(first.W - first.W * first.keep, G)
        assert bool((row_errors(first.W - solution.W, G) <= before).all())
        assert step.error_before == pytest.approx(relative_error(first.W, first.W * first.keep, G), rel=1e-5)
        assert step.error == pytest.approx(relative_error(first.W, solution.W, G), rel=1e-5, abs=1e-9)
        assert step.error < step.error_before or solver.name == "dsnot"


@every_solver
def test_keeping_everything_changes_nothing(solver: Solver) -> None:
    first = problem(solver, Amount(remove=0), masked=True)
    solution = solver.solve(first)
    assert torch.allclose(solution.W, first.W, rtol=1e-4, atol=1e-5)
    assert torch.equal(solve_chain([solver], first)[0].W, first.W)
    assert bool(solution.keep.all())


@every_fixed_solver
@settings(max_examples=15, deadline=None)
@given(share=st.floats(0.01, 0.99), seed=st.integers(0, 5))
def test_any_mask_comes_back(solver: Solver, share: float, seed: int) -> None:
    first = problem(solver, AMOUNTS["half"], masked=True, seed=seed)
    keep = torch.rand(OUT, IN, generator=torch.Generator().manual_seed(seed)) > share
    solution = solver.solve(replace(first, keep=keep))
    assert torch.equal(solution.keep, keep)
    assert torch.equal(solution.W != 0, keep)


@every_masked_solver
def test_a_solver_that_does_not_choose_asks_for_a_score(solver: Solver) -> None:
    with pytest.raises(ValueError, match=r"layer: .*give a score"):
        solver.solve(problem(solver, AMOUNTS["half"], masked=False))


@every_solver_with_gram
def test_missing_statistics_are_refused_by_the_layers_name(solver: Solver) -> None:
    first = problem(solver, AMOUNTS["half"], masked=True)
    with pytest.raises(ValueError, match=r"layer: .*needs statistics"):
        solver.solve(replace(first, statistics=None))


@every_solver_with_gram
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_gram_matrix_that_is_not_finite_is_an_error(solver: Solver, bad: float) -> None:
    first = problem(solver, AMOUNTS["half"], masked=True)
    first.statistics.gram[5, 3] = bad
    with pytest.raises(SolverError, match="layer: "):
        solver.solve(first)


@every_choosing_solver
def test_a_pattern_that_does_not_divide_the_width_is_refused_by_the_layers_name(solver: Solver) -> None:
    with pytest.raises(PatternError, match=r"2:5.*layer has 24 inputs"):
        solver.solve(problem(solver, Amount(pattern=Pattern(2, 5)), masked=False))


@every_choosing_solver
def test_what_a_minimum_per_output_makes_impossible_is_refused_by_the_layers_name(solver: Solver) -> None:
    too_many = Amount(remove=OUT * IN - 5, min_per_output=1)
    rows_too_short = Amount(remove=22 * OUT, min_per_output=3, per="output")
    pattern_too_sparse = Amount(pattern=Pattern(1, 12), min_per_output=3)
    for amount in (too_many, rows_too_short, pattern_too_sparse):
        with pytest.raises(UsageError, match=r"layer: .*--min-per-output"):
            solver.solve(problem(solver, amount, masked=False))


FOLLOWING = ["sparsegpt+refit", "admm+refit", "alps+refit", "admm+swap+refit", "sparsegpt+dsnot", "admm+sparsegpt"]


@pytest.mark.parametrize("names", FOLLOWING)
@every_amount
def test_a_chain_meets_the_amount_and_each_step_starts_where_the_one_before_ended(names: str, amount: Amount) -> None:
    chain = chain_named(names)
    first = problem(chain[0], amount, masked=False)
    solution, steps = solve_chain(chain, first)
    assert [step.solver for step in steps] == names.split("+")
    assert torch.equal(solution.W != 0, solution.keep)
    assert int((~solution.keep).sum()) == zeros_expected(amount, solution.keep)
    for before, after in itertools.pairwise(steps):
        assert after.error_before == before.error
    assert all(step.error <= step.error_before for step in steps)
    assert steps[-1].error == pytest.approx(relative_error(first.W, solution.W, first.statistics.G), rel=1e-4)


def test_refit_goes_on_from_the_step_before() -> None:
    first = problem(SOLVERS["sparsegpt"], AMOUNTS["half"], masked=False)
    both = solve_chain(chain_named("sparsegpt+refit"), first)[0]
    alone = solve_chain(chain_named("sparsegpt"), first)[0]
    assert torch.equal(both.keep, alone.keep)
    assert relative_error(first.W, both.W, first.statistics.G) < relative_error(first.W, alone.W, first.statistics.G)


def test_a_chain_that_would_put_dense_values_back_is_refused() -> None:
    with pytest.raises(UsageError, match=r"sparsegpt\+refit\+none.*'none' can't follow 'refit'"):
        chain_named("sparsegpt+refit+none")
    with pytest.raises(UsageError, match=r"unknown solver 'reft'.*refit"):
        chain_named("sparsegpt+reft")


def test_a_solver_that_is_worse_on_a_row_is_refused_there_and_the_count_is_reported() -> None:
    class Spoiler(Solver):
        name = "spoiler"
        needs = Needs.GRAM
        about = "spoils two rows, one of them with NaN"

        def solve(self, problem: Problem) -> Solution:
            W = SOLVERS["refit"].solve(problem).W
            W[1] *= 3
            W[4] = float("nan")
            return Solution(W, problem.keep)

    first = problem(SOLVERS["refit"], AMOUNTS["half"], masked=True)
    solution, (step,) = solve_chain([Spoiler()], first)
    assert step.rows_refused == 2
    assert torch.equal(solution.W[[1, 4]], (first.W * first.keep)[[1, 4]])
    assert torch.equal(solution.W[0], SOLVERS["refit"].solve(first).W[0])
