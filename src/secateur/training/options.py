"""Checks of what a `TrainingPruner` is told, before training begins."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from secateur.allocation.amounts import Pattern
from secateur.errors import UsageError, did_you_mean
from secateur.schedules import OneShot, Schedule
from secateur.training.regularization import Regularizer
from secateur.training.unit_masks import UnitMasks

COARSE = 0.02  # of the units: as many fewer than the schedule says are worth a warning
ALLOCATIONS = ("uniform", "global")


def schedule_of(schedule: Schedule | None, pattern: str | None, regrow: bool) -> Schedule:
    """Returns the schedule; of a pattern alone, all at once.

    Raises:
        UsageError: There is none, it doesn't end at the pattern's sparsity, or nothing could return on it.
    """
    if schedule is not None and not isinstance(schedule, Schedule):
        raise UsageError(
            f"schedule={schedule!r}: give one of secateur.schedules, such as Cubic(final=0.8, begin=100, end=2000, "
            "every=50), or a Schedule of your own."
        )
    if schedule is None and pattern is None:
        raise UsageError("a schedule is needed, for instance Cubic(final=0.8, begin=100, end=2000, every=50).")
    if isinstance(schedule, OneShot) and regrow:
        raise UsageError(
            "regrow=True exchanges weights whenever there is pruning, and OneShot prunes once; for a constant sparsity "
            f"give Cubic(final={schedule.final:g}, begin=0, end=1000, every=50, initial={schedule.final:g})."
        )
    if pattern is None:
        assert schedule is not None
        return schedule
    parsed = Pattern.parse(pattern)
    share = 1 - parsed.n / parsed.m
    if schedule is None:
        return OneShot(share)
    if abs(schedule.final - share) > 1e-9:
        raise UsageError(f"pattern {pattern} removes {share:g}, and the schedule ends at {schedule.final:g}.")
    return schedule


def check_threshold(threshold: float | str, beside: Sequence[str]) -> None:
    """Raises UsageError if nothing scores below the threshold, or another option decides what goes as well."""
    if beside:
        raise UsageError(f"a threshold says by itself what goes; leave {beside[0]} out.")
    if isinstance(threshold, int | float) and threshold <= 0:
        raise UsageError(f"threshold={threshold:g}: nothing scores below that.")


def check_regularizer(regularizer: object) -> None:
    """Raises UsageError if it isn't a regularizer."""
    if not isinstance(regularizer, Regularizer):
        raise UsageError(f"regularizer={regularizer!r}: give one such as L1(1e-4) of secateur.training.regularization.")


def check_allocation(allocation: str | Mapping[str, float]) -> None:
    """Raises UsageError if there is no allocation of the name."""
    if isinstance(allocation, str) and allocation not in ALLOCATIONS:
        raise UsageError(f"unknown allocation '{allocation}' while training.{did_you_mean(allocation, ALLOCATIONS)}")


def check_final(schedule: Schedule, of_shares: bool) -> None:
    """Raises UsageError if a schedule of shares of single weights would leave none of them."""
    if of_shares and schedule.finished is not None and schedule.final == 1:
        raise UsageError("final=1 leaves no weight; end the schedule below that.")


def check_share(schedule: Schedule, step: int) -> None:
    """Raises UsageError if a schedule of the user's own gives no share."""
    share = schedule(step)
    if not 0 <= share <= 1:
        raise UsageError(f"{type(schedule).__name__} gives {share} at step {step}; a sparsity lies between 0 and 1.")


def own_name(score: Callable[..., object]) -> str:
    """Returns what a score of the user's own is known by."""
    return str(getattr(score, "__qualname__", type(score).__qualname__))


def plain(value: Any) -> Any:
    """Returns settings with Python's numbers in the place of numpy's, which `torch.load` wouldn't read."""
    if isinstance(value, Mapping):
        return {name: plain(one) for name, one in value.items()}
    return value.item() if isinstance(value, np.generic) else value


def check_room(masks: UnitMasks, schedule: Schedule, by_threshold: bool) -> None:
    """Raises UsageError if the schedule would leave a group less than it has to keep."""
    if by_threshold or masks.allocation == "global":
        return
    for one in masks.coupled:
        share = schedule.final if isinstance(masks.allocation, str) else masks.allocation[one.name]
        if one.count - round(share * one.count) < masks.min_units:
            raise UsageError(
                f"{one.name} has {one.count} units: removing {share:.0%} leaves "
                f"{one.count - round(share * one.count)}, and at least {masks.min_units} have to stay."
            )
    if isinstance(masks.allocation, str):
        going = {one.name: masks.rounded(one, round(schedule.final * one.count)) for one in masks.coupled}
        found = sum(going.values()) / masks.units
        if found == 0:
            raise UsageError(f"round_to={masks.round_to}: no group can lose {schedule.final:.0%} and keep a multiple.")
        if found < schedule.final - COARSE:
            warnings.warn(
                f"with round_to={masks.round_to} and min_units={masks.min_units}, {found:.1%} of the units go in the "
                f"end instead of {schedule.final:.1%}.",
                stacklevel=3,
            )
