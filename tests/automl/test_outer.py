"""Choices in plain data, and the outer search over them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import optuna
import pytest

from secateur.automl.choices import chosen
from secateur.automl.outer import Report, search_choices
from secateur.errors import SearchError, UsageError

SPACE = {
    "prune": {
        "sparsity": 0.5,
        "how": {
            "choice": [
                {"score": "wanda", "solver": {"choice": ["refit", "swap+refit"]}},
                {"solver": {"choice": ["admm", "alps"]}, "damping": {"float": [1e-3, 1.0], "log": True}},
            ]
        },
    },
    "rounds": {"int": [1, 4]},
}


def test_choices_are_made_and_those_of_what_was_not_chosen_are_not() -> None:
    trial = optuna.trial.FixedTrial(
        {"prune.how": "#1", "prune.how.#1.solver": "alps", "prune.how.#1.damping": 0.1, "rounds": 3}
    )
    made = chosen(SPACE, trial)
    assert made == {"prune": {"sparsity": 0.5, "how": {"solver": "alps", "damping": 0.1}}, "rounds": 3}
    assert set(trial.params) == {"prune.how", "prune.how.#1.solver", "prune.how.#1.damping", "rounds"}


def worth(data: Any, report: Report) -> float:
    how = data["prune"]["how"]
    value = -abs(data["rounds"] - 3) + (2.0 if how["solver"] == "admm" else 0.0)
    for step in range(3):
        report(step, value + step)
    return value + 3


def test_the_best_choices_are_found_and_bad_trials_end_early(tmp_path: Path) -> None:
    storage = f"sqlite:///{tmp_path / 'study.db'}"
    found = search_choices(SPACE, worth, trials=40, storage=storage)
    assert found.best["prune"]["how"]["solver"] == "admm"
    assert found.best["rounds"] == 3
    assert found.value == 5.0
    assert (found.trials, found.pruned > 0) == (40, True)
    assert max(found.importances, key=lambda name: found.importances[name]) != "prune.how.#0.solver"
    assert search_choices(SPACE, worth, trials=45, storage=storage).trials == 45  # it goes on
    with pytest.raises(SearchError, match=r"is of another search \(prune differ\)"):
        search_choices({"rounds": {"int": [1, 4]}}, worth, trials=50, storage=storage)


def test_draws_differ_when_a_study_is_gone_on_with_and_between_workers(tmp_path: Path) -> None:
    space = {"x": {"float": [0.0, 1.0]}}
    drawn: list[float] = []

    def noted(data: Any, report: Report) -> float:
        drawn.append(data["x"])
        return float(data["x"])

    for trials in (4, 8):
        search_choices(space, noted, trials=trials, sampler="random", storage=f"sqlite:///{tmp_path / 'study.db'}")
    for seed in ((0, 1), (0, 2), 0, 0):
        search_choices(space, noted, trials=4, sampler="random", seed=seed)
    assert len(set(drawn[:16])) == 16
    assert drawn[16:20] == drawn[20:] == drawn[:4]  # the same search again


def test_what_values_depend_on_is_the_same_for_all_workers(tmp_path: Path) -> None:
    storage = f"sqlite:///{tmp_path / 'study.db'}"
    space = {"x": {"int": [1, 4]}}
    search_choices({**space, "output": "one"}, lambda data, report: 1.0, trials=1, storage=storage, about={"limit": 1})
    search_choices({**space, "output": "two"}, lambda data, report: 1.0, trials=2, storage=storage, about={"limit": 1})
    with pytest.raises(SearchError, match=r"is of another search \(limit differ\)"):
        search_choices(space, lambda data, report: 1.0, trials=3, storage=storage, about={"limit": 2})


def test_candidates_that_fail_are_passed_over_and_three_in_a_row_stop_it() -> None:
    def picky(data: Any, report: Report) -> float:
        if data["rounds"] == 1:
            raise ValueError("one round is too few")
        return float(data["rounds"])

    outcome = search_choices({"rounds": {"choice": [1, 9]}}, picky, trials=20, sampler="random")
    assert outcome.value == 9
    ((failure, number),) = outcome.failures.items()
    assert failure.startswith("ValueError: one round is too few (test_outer.py, line ")
    assert 0 < number < 20
    assert outcome.pruned == 0

    def never(data: Any, report: Report) -> float:
        raise ValueError("never")

    with pytest.raises(SearchError, match="3 candidates in a row couldn't be judged; the last one: ValueError: never"):
        search_choices({"rounds": {"int": [1, 9]}}, never, trials=20)


@pytest.mark.parametrize(
    ("space", "trials", "says"),
    [({"a": {"chioce": [1, 2]}}, 3, "the space leaves nothing open"), ({"a": {"int": [1, 3]}}, 0, "but got 0")],
)
def test_a_search_over_nothing_is_refused(space: Any, trials: int, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        search_choices(space, lambda data, report: 1.0, trials=trials)


@pytest.mark.parametrize(
    ("space", "says"),
    [
        ({"a": {"int": [3, 1]}}, r"a: 'int' takes the least and the largest"),
        ({"a": {"float": [0, 1], "log": True}}, r"a: 'log' needs numbers above 0"),
        ({"a": [{"choice": ["x"]}]}, r"a.0: 'choice' takes a list of two or more"),
        ({"a": {"choice": [1, 1]}}, r"a: 'choice' names a value twice"),
        ({"a": {"int": [1, 2], "float": [1, 2]}}, "one of choice, int, float"),
    ],
)
def test_a_malformed_choice_is_named(space: Any, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        chosen(space, optuna.trial.FixedTrial({}))
