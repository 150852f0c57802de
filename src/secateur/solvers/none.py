"""Mask only: the weights that stay keep their values."""

from secateur.solvers.base import Problem, Solution, Solver, mask_of


class NoUpdate(Solver):
    """W ⊙ M."""

    name = "none"
    follows = False
    about = "mask only: kept weights stay as they are; needs a --score"

    def solve(self, problem: Problem) -> Solution:
        keep = mask_of(problem)
        return Solution(problem.W * keep, keep)
