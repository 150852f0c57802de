"""Schedules: sparsity as a function of the training step.

Step t is the state after t steps of the optimizer; step 0 comes before the first one.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass, is_dataclass
from typing import Any

from secateur.errors import UsageError


class Schedule(ABC):
    """What share is pruned after a step, and after which steps pruning happens.

    A schedule is a function: `schedule(step)` is the sparsity that holds after that step, `schedule.due(step)` whether
    it changes there.
    """

    final: float

    @abstractmethod
    def __call__(self, step: int) -> float:
        """Returns the sparsity after a step, in [0, final]."""

    @abstractmethod
    def due(self, step: int) -> bool:
        """Whether pruning happens after this step."""

    @property
    def finished(self) -> int | None:
        """The first step with the final sparsity; None where it can't be said beforehand."""
        return None

    def describe(self) -> dict[str, Any]:
        """Returns its kind and its settings, by which a saved pruner knows its schedule again."""
        own = {name: value for name, value in vars(self).items() if not name.startswith("_")}
        settings = asdict(self) if is_dataclass(self) else own
        return {"schedule": type(self).__name__, **settings}


def _check_share(name: str, value: float, least: float = 0.0) -> None:
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise UsageError(f"{name}={value!r}: a number between {least:g} and 1 is needed.")
    if not least <= value <= 1 or (name == "final" and value == 0):
        raise UsageError(f"{name}={value}: a schedule's sparsities lie between {least:g} and 1, the final one above 0.")


@dataclass(frozen=True)
class OneShot(Schedule):
    """All at once, after step `begin`.

    Attributes:
        final: The sparsity.
        begin: The step.
    """

    final: float
    begin: int = 0

    def __post_init__(self) -> None:
        _check_share("final", self.final)
        _check_step("begin", self.begin)

    def __call__(self, step: int) -> float:
        return self.final if step >= self.begin else 0.0

    def due(self, step: int) -> bool:
        return step == self.begin

    @property
    def finished(self) -> int:
        return self.begin


def _check_step(name: str, value: int) -> None:
    if not isinstance(value, int | float) or value < 0 or int(value) != value:
        raise UsageError(f"{name}={value!r}: steps are whole numbers from 0 on.")


@dataclass(frozen=True)
class Gradual(Schedule):
    """From `initial` after step `begin` to exactly `final` after step `end`, pruning every so many steps.

    Attributes:
        final: The sparsity at the end.
        begin: The step of the first pruning.
        end: The step of the last one.
        every: Steps from one pruning to the next. The last interval is shorter if it doesn't divide the way.
        initial: The sparsity at `begin`.
    """

    final: float
    begin: int
    end: int
    every: int = 1
    initial: float = 0.0

    def __post_init__(self) -> None:
        _check_share("final", self.final)
        _check_share("initial", self.initial)
        _check_step("begin", self.begin)
        _check_step("end", self.end)
        if self.end == self.begin:
            raise UsageError(f"the schedule ends where it begins, at step {self.end}; OneShot prunes all at once.")
        if self.end < self.begin:
            raise UsageError(f"the schedule ends (step {self.end}) before it begins (step {self.begin}).")
        if self.every < 1:
            raise UsageError(f"every={self.every}: a schedule prunes every 1, 2, 3 ... steps.")
        if self.initial > self.final:
            raise UsageError(
                f"the schedule's initial sparsity {self.initial:g} is above its final one, {self.final:g}."
            )

    def __call__(self, step: int) -> float:
        if step < self.begin:
            return 0.0
        if step >= self.end:
            return self.final
        way = (step - self.begin) // self.every * self.every / (self.end - self.begin)
        return self.initial + (self.final - self.initial) * self._share(way)

    def due(self, step: int) -> bool:
        return step == self.end or (self.begin <= step < self.end and (step - self.begin) % self.every == 0)

    @property
    def finished(self) -> int:
        return self.end

    @abstractmethod
    def _share(self, way: float) -> float:
        """Returns what share of the increase is reached after a share of the way: 0 at 0, 1 at 1."""


@dataclass(frozen=True)
class Linear(Gradual):
    """The same amount each time."""

    def _share(self, way: float) -> float:
        return way


@dataclass(frozen=True)
class Cubic(Gradual):
    """1 - (1 - way)³: much at first, ever less towards the end (Zhu and Gupta 2017, arXiv 1710.01878, eq. 1)."""

    def _share(self, way: float) -> float:
        return 1 - (1 - way) ** 3


@dataclass(frozen=True)
class Cosine(Gradual):
    """(1 - cos(π way)) / 2: slowly at first and at the end."""

    def _share(self, way: float) -> float:
        return (1 - math.cos(math.pi * way)) / 2


@dataclass(frozen=True)
class Exponential(Gradual):
    """Each pruning leaves the same share of what was left before, so that the density falls exponentially.

    A final sparsity of 1 can't be reached like this.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.final == 1:
            raise UsageError("final=1: a density that falls exponentially doesn't reach 0; take Linear or Cubic.")

    def _share(self, way: float) -> float:
        start, end = 1 - self.initial, 1 - self.final
        return (start - start * (end / start) ** way) / (start - end) if start > end else way


@dataclass(frozen=True)
class Periodic(Schedule):
    """A fixed share of what remains, every so many steps (Han et al. 2015; Frankle and Carbin 2019).

    Attributes:
        every: Steps from one pruning to the next; the first comes after step `begin + every`.
        amount: The share of what remains that goes each time.
        final: No more than this is pruned.
        begin: The step from which on it counts.
    """

    every: int
    amount: float
    final: float = 1.0
    begin: int = 0

    def __post_init__(self) -> None:
        _check_share("final", self.final)
        _check_step("begin", self.begin)
        if not 0 < self.amount < 1:
            raise UsageError(f"amount={self.amount:g}: the share that goes each time lies between 0 and 1.")
        if self.every < 1:
            raise UsageError(f"every={self.every}: a schedule prunes every 1, 2, 3 ... steps.")

    def __call__(self, step: int) -> float:
        times = max(0, step - self.begin) // self.every
        return min(self.final, 1 - (1 - self.amount) ** times)

    def due(self, step: int) -> bool:
        return step > self.begin and (step - self.begin) % self.every == 0 and self(step) > self(step - self.every)

    @property
    def finished(self) -> int | None:
        if self.final == 1:
            return None
        return self.begin + self.every * math.ceil(math.log(1 - self.final) / math.log(1 - self.amount) - 1e-9)


class WhenRecovered(Schedule):
    """Prunes again once a metric is back within a margin of what it was before any pruning.

    The pruner tells it of each measurement (`pruner.report(metric)`); the first one sets the reference, and pruning
    begins with the next step, so report once the model has learnt what it is to keep. So it isn't a function of the
    step alone: `schedule(step)` is what holds now.
    """

    def __init__(self, final: float, amount: float, margin: float, *, greater_is_better: bool = True) -> None:
        """
        Args:
            final: The sparsity at the end.
            amount: What each pruning adds to the sparsity.
            margin: How far the metric may lie from its reference, in the metric's own unit.
            greater_is_better: False for a loss.

        Raises:
            UsageError: A number is out of range.
        """
        _check_share("final", final)
        if not 0 < amount <= final:
            raise UsageError(f"amount={amount:g}: each pruning adds more than 0 and at most the final {final:g}.")
        if margin < 0:
            raise UsageError(f"margin={margin:g}: it can't be negative.")
        self.final, self.amount, self.margin, self.greater_is_better = final, amount, margin, greater_is_better
        self.reference: float | None = None
        self.times = 0
        self.recovered = False

    def report(self, metric: float) -> None:
        """Takes note of a measurement.

        Raises:
            UsageError: It isn't a finite number.
        """
        if not math.isfinite(metric):
            raise UsageError(f"the reported metric is {metric}; WhenRecovered needs a finite number.")
        sign = 1 if self.greater_is_better else -1
        if self.times == 0:
            known = -math.inf if self.reference is None else sign * self.reference
            self.reference = sign * max(known, sign * metric)
        assert self.reference is not None
        self.recovered = sign * metric >= sign * self.reference - self.margin and self(0) < self.final

    def took(self) -> None:
        """Takes note of a pruning that is about to happen."""
        self.times += 1
        self.recovered = False

    def __call__(self, step: int) -> float:
        return self.final if self.times * self.amount > self.final - 1e-9 else self.times * self.amount

    def due(self, step: int) -> bool:
        return self.recovered

    def describe(self) -> dict[str, Any]:
        settings = ("final", "amount", "margin", "greater_is_better")
        return {"schedule": type(self).__name__, **{name: getattr(self, name) for name in settings}}

    def state_dict(self) -> dict[str, Any]:
        """Returns what it has been told so far."""
        return {"reference": self.reference, "times": self.times, "recovered": self.recovered}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes up what `state_dict` returned."""
        self.reference, self.times, self.recovered = state["reference"], state["times"], state["recovered"]


SCHEDULES: dict[str, type[Schedule]] = {
    kind.__name__: kind for kind in (OneShot, Linear, Cubic, Cosine, Exponential, Periodic, WhenRecovered)
}

__all__ = [
    "SCHEDULES",
    "Cosine",
    "Cubic",
    "Exponential",
    "Linear",
    "OneShot",
    "Periodic",
    "Schedule",
    "WhenRecovered",
]
