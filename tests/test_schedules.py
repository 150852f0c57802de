"""Schedules: the shape of the way, the exact end, and what is refused."""

from __future__ import annotations

import pytest

from secateur.errors import UsageError
from secateur.schedules import SCHEDULES, Cosine, Cubic, Exponential, Linear, OneShot, Periodic, Schedule, WhenRecovered

GRADUAL = [kind(0.9, begin=10, end=55, every=10, initial=0.1) for kind in (Linear, Cubic, Cosine, Exponential)]


def prunings(schedule: Schedule, steps: int = 200) -> list[int]:
    return [step for step in range(steps) if schedule.due(step)]


@pytest.mark.parametrize("schedule", GRADUAL, ids=lambda one: type(one).__name__)
def test_a_gradual_schedule_rises_from_its_beginning_to_its_exact_end(schedule: Schedule) -> None:
    assert prunings(schedule) == [10, 20, 30, 40, 50, 55]
    assert schedule(9) == 0
    assert schedule(10) == pytest.approx(0.1)
    assert schedule(55) == schedule(1000) == 0.9
    way = [schedule(step) for step in range(10, 56)]
    assert way == sorted(way)
    assert schedule(19) == schedule(10)  # nothing changes between two prunings
    assert schedule.finished == 55


def test_the_formulas() -> None:
    assert Linear(0.8, 0, 4)(1) == pytest.approx(0.2)
    assert Cubic(0.8, 0, 4)(2) == pytest.approx(0.8 * (1 - 0.5**3))
    assert Cosine(0.8, 0, 4)(2) == pytest.approx(0.4)
    density = Exponential(0.75, 0, 4)
    assert [1 - density(step) for step in range(5)] == pytest.approx([0.25 ** (step / 4) for step in range(5)])
    assert Exponential(0.5, 0, 4, initial=0.5)(2) == 0.5


def test_one_shot_and_periodic() -> None:
    assert prunings(OneShot(0.5, begin=3)) == [3]
    assert (OneShot(0.5, begin=3)(2), OneShot(0.5, begin=3)(3)) == (0, 0.5)
    periodic = Periodic(every=5, amount=0.2, final=0.6, begin=2)
    assert prunings(periodic) == [7, 12, 17, 22, 27]
    assert [periodic(step) for step in prunings(periodic)] == pytest.approx([0.2, 0.36, 0.488, 0.5904, 0.6])
    assert periodic.finished == 27
    assert Periodic(every=5, amount=0.2).finished is None


def test_when_recovered_waits_for_the_metric() -> None:
    schedule = WhenRecovered(0.5, amount=0.2, margin=0.01)
    steps = []
    for metric in (0.8, 0.9, 0.85, 0.885, 0.891, 0.7, 0.95):
        schedule.report(metric)
        if schedule.due(0):
            schedule.took()
            steps.append((metric, schedule(0)))
    assert steps == [(0.8, 0.2), (0.9, 0.4), (0.85, 0.5)]  # the reference is the best before the first pruning: 0.8


def test_when_recovered_goes_by_a_loss_as_well() -> None:
    schedule = WhenRecovered(0.5, amount=0.25, margin=0.1, greater_is_better=False)
    schedule.report(1.0)
    schedule.took()
    schedule.report(1.2)
    assert not schedule.due(0)
    schedule.report(1.05)
    assert schedule.due(0)
    schedule.took()
    schedule.report(0.5)
    assert not schedule.due(0)  # the final sparsity is reached
    other = WhenRecovered(0.5, amount=0.25, margin=0.1, greater_is_better=False)
    other.load_state_dict(schedule.state_dict())
    assert (other.reference, other(0)) == (1.0, 0.5)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Cubic(0.5, begin=10, end=10), "ends where it begins, at step 10; OneShot"),
        (lambda: Cubic(0.5, begin=10, end=9), "ends \\(step 9\\) before it begins \\(step 10\\)"),
        (lambda: Linear(1.5, begin=0, end=10), "final=1.5"),
        (lambda: Linear(0.0, begin=0, end=10), "above 0"),
        (lambda: Linear(0.5, begin=0, end=10, every=0), "every=0"),
        (lambda: Linear(0.5, begin=-1, end=10), "begin=-1"),
        (lambda: Linear(0.5, begin=0, end=10, initial=0.6), "above its final"),
        (lambda: Exponential(1.0, begin=0, end=10), "take Linear or Cubic"),
        (lambda: Periodic(every=5, amount=1.0), "between 0 and 1"),
        (lambda: WhenRecovered(0.5, amount=0.6, margin=0), "at most the final"),
        (lambda: WhenRecovered(0.5, amount=0.1, margin=-1), "negative"),
        (lambda: WhenRecovered(0.5, amount=0.1, margin=0).report(float("nan")), "finite"),
    ],
)
def test_bad_settings_are_named(make: object, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        make()  # type: ignore[operator]


def test_every_schedule_says_what_it_is() -> None:
    assert {one.describe()["schedule"] for one in GRADUAL} <= set(SCHEDULES)
    assert Cubic(0.5, 0, 10).describe() != Cubic(0.5, 0, 11).describe()
