"""Trials in Optuna's storage: shared, gone on from, and refused where they are another search's."""

from __future__ import annotations

import re
from datetime import datetime
from pathlib import Path

import optuna
import pytest
from sqlalchemy import event
from sqlalchemy.engine import Engine
from sqlalchemy.exc import OperationalError

from secateur.automl import storage
from secateur.automl.course import search
from secateur.automl.reward import OUTSIDE, Worth
from secateur.automl.space import Place, Space
from secateur.automl.storage import Storage
from secateur.automl.strategies import Judged, Proposal, strategy_named
from secateur.automl.study import Study
from secateur.errors import SearchError
from secateur.progress import Progress

RUNGS = (8, 16)
SPACE = Space([Place(f"layer {n}", (0, 10, 20), (0, 1, 2), (0.0, n, 4.0 * n), (n / 6, 1.0)) for n in range(6)], 6)


def study(tmp_path: Path, more: bool = True, **about: object) -> Study:
    return Study(f"sqlite:///{tmp_path / 'study.db'}", "secateur", {"seed": 0, **about}, SPACE, more)


def worth(asked: Proposal) -> Worth:
    lost = sum(place.losses[level] for place, level in zip(SPACE.places, asked.levels, strict=True))
    return Worth(-lost - 1 / asked.tokens)


def add(one: Study, value: float) -> None:
    one.add(Proposal(SPACE.uniform(), 8, {"some": 0}, 3), datetime.now(), Worth(value, value, {"macs": 0.5}))


def test_workers_see_each_others_trials_once(tmp_path: Path) -> None:
    one, other = study(tmp_path), study(tmp_path)
    add(one, -1.5)
    (own,) = one.news()
    assert own.own
    assert one.news() == []
    (judged,) = other.news()
    assert judged == Judged(0, SPACE.uniform(), 8, -1.5, {"some": 0}, own=False, text=3)
    assert other.news() == []
    (trial,) = other.trials()
    assert trial.params == {f"layer {n}": level for n, level in enumerate(SPACE.uniform())}
    assert trial.user_attrs["quality"] == -1.5
    assert trial.user_attrs["shares"] == {"macs": 0.5}


def test_another_search_and_trials_that_nobody_asked_for_are_refused(tmp_path: Path) -> None:
    add(study(tmp_path), -1.0)
    with pytest.raises(SearchError, match=r"of another search \(seed differ\)"):
        study(tmp_path, seed=1)
    with pytest.raises(SearchError, match="--resume goes on from them"):
        study(tmp_path, more=False)


def test_a_storage_that_cannot_be_reached_is_named_without_its_password(tmp_path: Path) -> None:
    with pytest.raises(SearchError, match=r"the storage sqlite:////nowhere/study.db can't be used"):
        Study("sqlite:////nowhere/study.db", "secateur", {}, SPACE, True)
    with pytest.raises(SearchError, match=r"postgresql://me@127.0.0.1:1/x can't be used") as error:
        Study("postgresql://me:secret@127.0.0.1:1/x", "secateur", {}, SPACE, True)
    assert "secret" not in str(error.value)


def test_a_trial_is_in_the_study_once_it_is_judged_and_in_one_transaction(tmp_path: Path) -> None:
    """A worker that is killed loses the trial that it is at, and leaves nothing half done."""
    one, commits = study(tmp_path), 0

    def count(connection: object) -> None:
        nonlocal commits
        commits += 1

    def killed(asked: Proposal) -> Worth:
        if len(one) == 2:
            raise KeyboardInterrupt
        return worth(asked)

    event.listen(Engine, "commit", count)
    try:
        add(one, -1.0)
    finally:
        event.remove(Engine, "commit", count)
    assert commits == 1
    strategy = strategy_named("evolution")(SPACE, SPACE.uniform(), RUNGS, 0)
    with pytest.raises(KeyboardInterrupt):
        search(strategy, one, killed, 30, None, Progress())
    assert [trial.state for trial in study(tmp_path).trials()] == [optuna.trial.TrialState.COMPLETE] * 2


def test_a_storage_whose_tables_others_are_making_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 0

    class Busy(Storage):
        def __init__(self, url: str) -> None:
            nonlocal calls
            calls += 1
            if calls < 3:
                raise OperationalError("CREATE TABLE studies", None, Exception("table studies already exists"))
            super().__init__(url)

    monkeypatch.setattr(storage, "Storage", Busy)
    monkeypatch.setattr(storage, "WAIT", 0.0)
    add(study(tmp_path), -1.0)
    assert calls == 3


def test_a_search_goes_on_where_it_ended(tmp_path: Path) -> None:
    first = strategy_named("evolution")(SPACE, SPACE.uniform(), RUNGS, 0)
    course = search(first, study(tmp_path), worth, 30, None, Progress())
    assert course.trials == 30
    again = strategy_named("evolution")(SPACE, SPACE.uniform(), RUNGS, 0)
    more = search(again, study(tmp_path), worth, 50, None, Progress())
    assert more.trials == 20
    assert more.best.value is not None
    assert course.best.value is not None
    assert more.best.value >= course.best.value > worth(Proposal(SPACE.uniform(), 16)).reward
    assert more.start.levels == SPACE.uniform()


@pytest.mark.parametrize("name", ["evolution", "policy", "random", "tpe"])
def test_a_seed_gives_the_same_trials_again(name: str, tmp_path: Path) -> None:
    found = []
    for seed in (0, 0, 1):
        one = Study(None, "secateur", {}, SPACE, True)
        search(strategy_named(name)(SPACE, SPACE.uniform(), RUNGS, seed), one, worth, 45, None, Progress())
        found.append([(trial.params, trial.values, trial.user_attrs["text"]) for trial in one.trials()])
    assert found[0] == found[1] != found[2]


def test_a_reward_that_raises_loses_a_trial_and_three_in_a_row_stop_it(tmp_path: Path) -> None:
    calls = 0

    def sometimes(asked: Proposal) -> Worth:
        nonlocal calls
        calls += 1
        if calls % 3 == 2:
            raise ValueError("bad luck")
        return Worth(float("nan")) if calls % 7 == 6 else worth(asked)

    strategy = strategy_named("random")(SPACE, SPACE.uniform(), RUNGS, 0)
    course = search(strategy, study(tmp_path), sometimes, 40, None, Progress())
    failed = [t for t in study(tmp_path).trials() if t.state == optuna.trial.TrialState.FAIL]
    assert course.trials == 40
    raised, nan = sorted({trial.user_attrs["failure"] for trial in failed})
    assert re.fullmatch(r"ValueError: bad luck \(test_study.py, line \d+\)", raised)
    assert nan == "its reward came out as nan"

    def never(asked: Proposal) -> Worth:
        raise ValueError("no luck")

    (tmp_path / "other").mkdir()
    strategy = strategy_named("random")(SPACE, SPACE.uniform(), RUNGS, 0)
    with pytest.raises(
        SearchError, match="3 candidates in a row couldn't be judged; the last one: ValueError: no luck"
    ):
        search(strategy, study(tmp_path / "other"), never, 40, None, Progress())


def test_time_that_is_over_before_the_first_candidate_is_an_error(tmp_path: Path) -> None:
    strategy = strategy_named("random")(SPACE, SPACE.uniform(), RUNGS, 0)
    with pytest.raises(SearchError, match="was over before one candidate"):
        search(strategy, study(tmp_path), worth, None, 1e-9, Progress())


def test_limits_that_no_candidate_keeps_are_named(tmp_path: Path) -> None:
    strategy = strategy_named("evolution")(SPACE, SPACE.uniform(), RUNGS, 0)
    far = Worth(-OUTSIDE - 0.125, None, {"macs": 0.925})
    with pytest.raises(SearchError, match=r"the limits; the nearest one, trial 0, leaves 92.5% of macs\. Allow"):
        search(strategy, study(tmp_path), lambda asked: far, 30, None, Progress())


def test_importances_are_those_of_the_places_that_matter(tmp_path: Path) -> None:
    one = study(tmp_path)
    strategy = strategy_named("random")(SPACE, SPACE.uniform(), RUNGS, 0)
    assert one.importances(RUNGS[0]) == {}
    search(strategy, one, worth, 200, None, Progress())
    found = one.importances(RUNGS[0])
    assert sum(found.values()) == pytest.approx(1)
    assert max(found, key=lambda name: found[name]) in ("layer 0", "layer 5")  # what costs nothing, and the most
