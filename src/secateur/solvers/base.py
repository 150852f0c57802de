"""The contract of solvers: given a layer and what to remove, return its new weights."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from secateur.allocation.amounts import Amount
from secateur.calibration.statistics import Needs, Statistics
from secateur.compression.grid import Grid
from secateur.linear_algebra import DAMPING


@dataclass(frozen=True)
class Problem:
    """One layer to prune.

    Attributes:
        name: The layer's name, for errors.
        W: (out, in) float32, the dense weights.
        statistics: Of the layer's input; None if no solver or score needs any.
        amount: What to remove.
        keep: (out, in) bool, the mask that a score or the solver before chose; None if the solver is to choose.
        damping: Added to the Gram matrix's diagonal, relative to its mean; None takes the solver's own.
        block_size: Columns that are handled at once by solvers that sweep over columns.
        start: (out, in) float32, what the solver before left, zero outside of `keep`; None stands for W on the mask.
        grid: What the new weights have to lie on; None for numbers of any value.
    """

    name: str
    W: Tensor
    statistics: Statistics | None
    amount: Amount
    keep: Tensor | None = None
    damping: float | None = None
    block_size: int = 128
    start: Tensor | None = None
    grid: Grid | None = None


@dataclass(frozen=True)
class Solution:
    """A pruned layer.

    Attributes:
        W: (out, in) float32; zero where `keep` is False.
        keep: (out, in) bool.
        damping: The damping that it took, None where none was used.
        scales: (out, groups) float32, of the problem's grid; None without one.
    """

    W: Tensor
    keep: Tensor
    damping: float | None = None
    scales: Tensor | None = None


class Solver(ABC):
    """Returns new weights for a layer: a pure function of the problem.

    Attributes:
        name: The name in recipes and on the command line.
        needs: The statistics that it reads.
        chooses: Whether it can choose the mask by itself; otherwise a score must be given.
        moves: Whether it changes a mask that was given; each row (with N:M, each group) keeps its number of zeros.
        follows: Whether it makes sense after another solver.
        rounds: Whether it can put the weights on a grid.
        damping: Taken where the problem names none.
        about: One line for `--help` and the docs.
    """

    name: ClassVar[str]
    needs: ClassVar[Needs] = Needs.NOTHING
    chooses: ClassVar[bool] = False
    moves: ClassVar[bool] = False
    follows: ClassVar[bool] = True
    rounds: ClassVar[bool] = False
    damping: ClassVar[float] = DAMPING
    about: ClassVar[str]

    @abstractmethod
    def solve(self, problem: Problem) -> Solution:
        """Solves one layer.

        Args:
            problem: The layer; its `keep` is given unless `chooses`.

        Returns:
            New weights and their mask; a mask that was given comes back as it was, unless `moves`.

        Raises:
            SolverError: There is no solution.
        """

    def damping_of(self, problem: Problem) -> float:
        """Returns the damping that the problem asks for, or this solver's own."""
        return self.damping if problem.damping is None else problem.damping


def statistics_of(problem: Problem) -> Statistics:
    """Returns the problem's statistics, or raises ValueError: the caller didn't gather what is declared."""
    if problem.statistics is None:
        raise ValueError(f"{problem.name}: this solver needs statistics of the layer's input.")
    return problem.statistics


def mask_of(problem: Problem) -> Tensor:
    """Returns the problem's mask, or raises ValueError: the caller didn't choose one."""
    if problem.keep is None:
        raise ValueError(f"{problem.name}: this solver needs a mask; give a score.")
    return problem.keep


def start_of(problem: Problem) -> Tensor:
    """Returns the weights to improve on: what the solver before left, or the dense weights on the mask."""
    return problem.W * mask_of(problem) if problem.start is None else problem.start


def protected(problem: Problem, B: Tensor) -> Tensor:
    """Returns (out, in) bool: weights that may not go, so that no input dies where `min_per_output` asks for that.

    B: (out, in), the current weights. Rows need no protection, as they keep their number of weights.
    """
    marked = torch.zeros_like(B, dtype=torch.bool)
    if problem.amount.min_per_output > 0 and problem.amount.pattern is None:
        marked.scatter_(0, B.abs().argmax(0, keepdim=True), True)
    return marked
