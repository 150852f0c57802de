"""Carries out a recipe that leaves choices open: tries what they may be, and does what was best."""

from __future__ import annotations

import math
import os
from functools import cache
from pathlib import Path
from typing import Any

from secateur.automl.choices import has_choices
from secateur.automl.outer import Outcome, Report, search_choices
from secateur.automl.reward import Reward
from secateur.errors import SearchError, UsageError
from secateur.evaluation.costs import costs
from secateur.import_path import function_at
from secateur.lock import only_run
from secateur.network.loading import load
from secateur.network.saving import check_output
from secateur.processes import processes
from secateur.progress import Progress
from secateur.recipe import TRAINS, Recipe
from secateur.recipe.choosing import Choosing
from secateur.result import Result
from secateur.run import Run, run_recipe
from secateur.run_search import STUDY, Found, begun_folder, tidied

LENGTHS = ("epochs", "steps", "minutes")


def run_choices(data: dict[str, Any], progress: Progress | None = None, resume: bool = False) -> Result:
    """Searches over a recipe's choices, and carries out the recipe with the best of them.

    Args:
        data: A recipe as plain data in which values are left open, see `secateur.automl.choices`; its `search` is that
            of `Choosing`.
        progress: Shows progress.
        resume: Whether trials that the study has are gone on from.

    Returns:
        What the best recipe came to, its `search` saying what was tried.

    Raises:
        UsageError: The recipe has no choices, no output, or nothing to be judged on.
        SearchError: The study can't be used, or no recipe could be carried out.
    """
    progress = progress or Progress()
    settings = _settings(data.get("search") or {})
    plain = {name: value for name, value in data.items() if name != "search"}
    if not has_choices(plain):
        raise UsageError("the recipe leaves nothing open that could be searched over.")
    if plain.get("output") is None:
        raise UsageError("a search needs an output to keep its study in; give -o FOLDER.")
    output = Path(str(plain["output"])).expanduser()
    with only_run(output), tidied(output):
        return _run_choices(plain, settings, output, progress, resume)


def _settings(told: dict[str, Any]) -> Choosing:
    try:
        return Choosing.build(told)
    except UsageError as error:
        message = str(error)
        raise UsageError(message if message.startswith("search") else f"search.{message}") from error


def _run_choices(plain: dict[str, Any], settings: Choosing, output: Path, progress: Progress, resume: bool) -> Result:
    check_output(output, bool(plain.get("overwrite", False)))
    folder = begun_folder(output, resume or settings.storage is not None, bool(plain.get("overwrite", False)))
    judged, seed = _judged(settings, plain), int(plain.get("seed") or 0)

    @cache
    def dense_macs(model: str, length: int) -> int:
        return costs(load(model, seed=0), length).macs

    def worth(chosen: dict[str, Any], report: Report) -> float:
        value = -math.inf
        for number, share in enumerate(settings.budgets):
            tried = {**(scaled(chosen, share) if share < 1 else chosen), "output": None, "evaluate": judged}
            value = _value(run_recipe(Recipe.build(tried), progress), settings, dense_macs)
            if share < 1:
                report(number, value)
        return value

    outcome = search_choices(
        plain,
        worth,
        trials=settings.trials,
        seconds=settings.seconds,
        sampler=settings.strategy,
        seed=seed if settings.storage is None else (seed, os.getpid()),
        storage=settings.storage or f"sqlite:///{folder / STUDY}",
        study=settings.study,
        about=_about(plain, settings),
        progress=progress,
    )
    best = Recipe.build(outcome.best)
    found = Found(best.to_dict(), _told(outcome, settings), folder)
    with processes(best.device) as team:
        result = Run(best, progress, team, found=found).into(output)
    found.forget()
    return result


def _about(plain: dict[str, Any], settings: Choosing) -> dict[str, Any]:
    """Returns what the values of trials depend on."""
    told = settings.model_dump(mode="json", include={"judge", "reward", "budgets", "weigh", "limit"})
    return {**{name: value for name, value in plain.items() if name not in ("output", "overwrite", "evaluate")}, **told}


def scaled(data: Any, share: float) -> Any:
    """Returns a recipe whose training, or where nothing trains whose calibration, takes a share of what it takes."""
    stages, trained = _shortened(data.get("stages", []), share)
    if trained:
        return {**data, "stages": stages}
    calibration = dict(data.get("calibration") or {})
    samples = int(calibration.get("samples", 32))
    return {**data, "calibration": {**calibration, "samples": max(1, round(samples * share))}}


def _shortened(stages: list[Any], share: float) -> tuple[list[Any], bool]:
    found, trained = [], False
    for stage in stages:
        one = dict(stage)
        for kind in TRAINS:
            if kind not in one:
                continue
            training = dict(one[kind] or {})
            for name in LENGTHS:
                if training.get(name) is not None:
                    training[name] = (
                        max(1, round(training[name] * share)) if name == "steps" else training[name] * share
                    )
            if not any(training.get(name) is not None for name in LENGTHS):
                training["epochs"] = share
            one[kind], trained = training, True
        for inner in (one, one.get("repeat")):
            if isinstance(inner, dict) and isinstance(inner.get("stages"), list):
                inner["stages"], within = _shortened(inner["stages"], share)
                trained = trained or within
        found.append(one)
    return found, trained


def _judged(settings: Choosing, data: dict[str, Any]) -> dict[str, Any]:
    """Returns what trials are measured on."""
    if settings.judge is not None:
        return {**settings.judge.model_dump(mode="json"), "speed": False}
    if (data.get("calibration") or {}).get("images") is not None:
        raise UsageError("search: choices are for language models and classifiers of text.")
    return {"speed": False}


def _value(result: Result, settings: Choosing, dense_macs: Any) -> float:
    """Returns what an outcome is worth."""
    if settings.reward is not None and ":" in settings.reward:
        quality = float(function_at(settings.reward, "(result)")(result))
    else:
        quality = _quality(result, settings.reward)
    comparison = result.comparison
    shares: dict[str, float] = {}
    wanted = {*settings.weigh, *settings.limit}
    if wanted and comparison is not None:
        (other,) = comparison.others
        shares["params"] = other.parameters / comparison.dense.parameters
        if "macs" in wanted:
            length = (result.calibration or {}).get("length") or 1
            shares["macs"] = costs(result.network, length).macs / dense_macs(result.recipe["model"], length)
    reward = Reward("", settings.weigh, settings.limit)
    return (reward.beyond(shares) if reward.excess(shares) > 0 else reward.of(quality, shares)).reward


def _quality(result: Result, name: str | None) -> float:
    if result.comparison is None:
        raise SearchError(
            "nothing was measured, so recipes can't be judged; name what they are judged on: search.judge."
        )
    (other,) = result.comparison.others
    if name is None:
        name = "accuracy" if other.accuracy is not None else "kl"
    value = getattr(other, name)
    if value is None:
        raise SearchError(f"the evaluation measures no {name}; give another reward, or another search.judge.")
    if name == "perplexity":
        return -math.log(value)
    return float(value) if name == "accuracy" else -float(value)


def _told(outcome: Outcome, settings: Choosing) -> dict[str, Any]:
    """Returns what the search came to, as plain data."""
    quality = settings.reward or "the accuracy of classifiers, minus the divergence from the dense model of others"
    return {
        "strategy": settings.strategy,
        "reward": Reward(quality, settings.weigh, settings.limit).words,
        "trials": outcome.trials,
        "pruned": outcome.pruned,
        "failures": outcome.failures,
        "seconds": outcome.seconds,
        "seconds_levels": 0.0,
        "start": outcome.course[0]["value"],
        "best": outcome.value,
        "shares": {},
        "course": list(outcome.course),
        "judged": [],
        "front": [],
        "chosen": outcome.course[-1]["trial"],
        "params": outcome.params,
        "importances": outcome.importances,
    }
