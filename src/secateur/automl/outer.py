"""The outer search: which algorithm, which units, how often; by Optuna's samplers, bad trials ended early."""

from __future__ import annotations

import json
import math
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import optuna

from secateur.automl.choices import chosen, has_choices
from secateur.automl.course import FAILURES
from secateur.automl.storage import opened
from secateur.automl.strategies import strategy_named
from secateur.errors import SearchError, UsageError, raised_at
from secateur.progress import Progress


def _tpe(seed: int) -> optuna.samplers.BaseSampler:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # of `group`, which spaces need
        return optuna.samplers.TPESampler(seed=seed, multivariate=True, group=True)


SAMPLERS: dict[str, Callable[[int], optuna.samplers.BaseSampler]] = {
    "tpe": _tpe,
    "random": lambda seed: optuna.samplers.RandomSampler(seed=seed),
    "nsga2": lambda seed: optuna.samplers.NSGAIISampler(seed=seed),
    "cmaes": lambda seed: optuna.samplers.CmaEsSampler(seed=seed),
}


class Report:
    """How a trial does on the way: `report(step, value)` ends one that is worse than others were there."""

    def __init__(self, trial: optuna.trial.Trial) -> None:
        self._trial = trial

    def __call__(self, step: int, value: float) -> None:
        """Says what the candidate is worth after a step.

        Raises:
            optuna.TrialPruned: The trial isn't worth going on with.
        """
        self._trial.report(value, step)
        if self._trial.should_prune():
            raise optuna.TrialPruned


@dataclass(frozen=True)
class Outcome:
    """What an outer search came to.

    Attributes:
        best: The data with the best choices made.
        params: These choices, by their paths.
        value: What they are worth.
        trials: How many there were.
        pruned: How many of them were ended early.
        failures: Why others couldn't be carried out, and how many.
        importances: How much each choice matters, adding up to 1; empty where too few trials tell.
        seconds: Wall time of this call.
        course: The trials that were the best so far, each with `trial`, `seconds` since the first one and `value`.
    """

    best: Any
    params: dict[str, Any]
    value: float
    trials: int
    pruned: int
    failures: dict[str, int]
    importances: dict[str, float]
    seconds: float
    course: tuple[dict[str, float], ...]


def search_choices(
    space: Any,
    worth: Callable[[Any, Report], float],
    *,
    trials: int | None = None,
    seconds: float | None = None,
    sampler: str = "tpe",
    seed: int | Sequence[int] = 0,
    storage: str | None = None,
    study: str = "secateur",
    about: Any = None,
    progress: Progress | None = None,
) -> Outcome:
    """Searches over the choices that are left open in plain data.

    Args:
        space: Plain data with choices, see `secateur.automl.choices`.
        worth: What the data with all choices made is worth, more being better; it may report on the way.
        trials: Candidates at most; 30 if no seconds are given either.
        seconds: Wall time at most.
        sampler: `tpe`, `random`, `nsga2` or `cmaes`.
        seed: Of what is drawn, with the number of trials that there are. Workers that share a storage need different
            ones, such as (0, os.getpid()).
        storage: Of Optuna's study, which other workers may share and a later call goes on with; None keeps it in
            memory.
        study: Its name there.
        about: Plain data that the values depend on, the same for all that share a study; the space, if it isn't given.
        progress: Shows progress.

    Raises:
        SearchError: The storage can't be used, or candidates can't be judged.
        UsageError: A choice is malformed, or the sampler unknown; there is no choice, or no trial is asked for.

    Example:
        >>> space = {"score": {"choice": ["l1", "movement"]}, "every": {"int": [10, 200], "log": True}}
        >>> outcome = search_choices(space, lambda chosen, report: train(**chosen), trials=30)
    """
    if sampler not in SAMPLERS:
        strategy_named(sampler)  # says what is near to it
        raise SearchError(
            f"an outer search is made by {', '.join(SAMPLERS)}; '{sampler}' is for amounts under a budget."
        )
    if not has_choices(space):
        raise UsageError("the space leaves nothing open that could be searched over, such as {'choice': ['l1', 'l2']}.")
    if trials is not None and trials < 1:
        raise UsageError(f"a search takes one trial or more, but got {trials}.")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    pruner = optuna.pruners.MedianPruner(n_startup_trials=4)
    found = optuna.create_study(
        study_name=study,
        storage=None if storage is None else opened(storage),
        direction="maximize",
        load_if_exists=True,
        pruner=pruner,
    )
    _check_same(found, space if about is None else about)
    begun = len(found.get_trials(deepcopy=False))
    found.sampler = SAMPLERS[sampler](_drawn((seed, begun) if isinstance(seed, int) else (*seed, begun)))
    most = 30 if trials is None and seconds is None else trials
    tick = (progress or Progress()).bar("searching", most or 100)
    failed, last, began = 0, "", time.perf_counter()

    def judged(trial: optuna.trial.Trial) -> float:
        nonlocal failed, last
        data = chosen(space, trial)
        try:
            value = float(worth(data, Report(trial)))
        except optuna.TrialPruned:
            failed = 0
            raise
        except Exception as error:  # whatever the candidate's run raises: some don't fit together
            value, last = math.nan, raised_at(error)
        else:
            last = f"it came out as {value}"
        finally:
            tick()
        if math.isfinite(value):
            failed = 0
            return value
        failed += 1
        trial.set_user_attr("failure", last)
        raise optuna.TrialPruned  # of which samplers keep away, unlike of failed ones

    def enough(study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
        if failed >= FAILURES or (most is not None and len(study.trials) >= most):
            study.stop()

    left = None if most is None else max(0, most - len(found.trials))
    if left != 0:
        found.optimize(judged, n_trials=left, timeout=seconds, callbacks=[enough])
    if failed >= FAILURES:
        raise SearchError(f"{FAILURES} candidates in a row couldn't be judged; the last one: {last}.")
    complete = found.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))
    if not complete:
        raise SearchError(
            f"no candidate was judged to its end{': ' + last if last else ''}; give it more time or trials."
        )
    return _outcome(found, space, complete, time.perf_counter() - began)


def _outcome(found: optuna.Study, space: Any, complete: Sequence[optuna.trial.FrozenTrial], seconds: float) -> Outcome:
    """Returns what the trials of a study come to."""
    best = found.best_trial
    pruned = found.get_trials(deepcopy=False, states=(optuna.trial.TrialState.PRUNED,))
    failures = Counter(trial.user_attrs["failure"] for trial in pruned if "failure" in trial.user_attrs)
    assert best.value is not None
    return Outcome(
        best=chosen(space, optuna.trial.FixedTrial(best.params)),
        params=dict(best.params),
        value=best.value,
        trials=len(found.trials),
        pruned=len(pruned) - failures.total(),
        failures=dict(failures),
        importances=_importances(found, len(complete)),
        seconds=seconds,
        course=tuple(_course(complete)),
    )


def _course(complete: Sequence[optuna.trial.FrozenTrial]) -> Iterator[dict[str, float]]:
    """Yields the trials that were the best so far."""
    best = -math.inf
    first = min(trial.datetime_start for trial in complete if trial.datetime_start is not None)
    for trial in complete:
        assert trial.value is not None
        assert trial.datetime_complete is not None
        if trial.value > best:
            best = trial.value
            seconds = (trial.datetime_complete - first).total_seconds()
            yield {"trial": trial.number, "seconds": seconds, "value": best}


def _drawn(seeds: Sequence[int]) -> int:
    """Returns a seed that depends on several numbers."""
    return int(np.random.SeedSequence(seeds).generate_state(1)[0])


def _check_same(study: optuna.Study, about: Any) -> None:
    """Raises SearchError if a study's trials are of another search; notes what a new one is about."""
    told = json.loads(json.dumps(about))
    known = study.user_attrs.get("about", told)
    if known != told:
        both = isinstance(known, dict) and isinstance(told, dict)
        which = sorted(name for name in {*known, *told} if known.get(name) != told.get(name)) if both else ["its space"]
        raise SearchError(
            f"the study '{study.study_name}' is of another search ({', '.join(which)} differ); give another storage or "
            "another name."
        )
    study.set_user_attr("about", told)


def _importances(study: optuna.Study, complete: int) -> dict[str, float]:
    """Returns how much each choice matters (by the variance that it explains)."""
    values = {trial.value for trial in study.get_trials(deepcopy=False) if trial.value is not None}
    if complete < 4 or len(values) < 2:
        return {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of choices that few trials made: they come out as little
        evaluator = optuna.importance.PedAnovaImportanceEvaluator()
        return dict(optuna.importance.get_param_importances(study, evaluator=evaluator))
