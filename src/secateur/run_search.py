"""Carries a search out: solve every level once, judge candidates, and prune the model as the best one says."""

from __future__ import annotations

import math
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from secateur.automl.course import Course, search
from secateur.automl.judge import Known, Quality, quality_of, windows_of
from secateur.automl.networks import NetworkSearch
from secateur.automl.reward import Reward, Worth
from secateur.automl.space import Levels, Space
from secateur.automl.storage import kept_trials, opened
from secateur.automl.strategies import STRATEGIES, Proposal, Strategy, strategy_named
from secateur.automl.study import Study
from secateur.automl.units import UnitSearch
from secateur.automl.weights import WeightSearch
from secateur.calibration.windows import Windows
from secateur.errors import ResumeError, SearchError, UsageError
from secateur.import_path import function_at
from secateur.network.loading import load
from secateur.network.network import Network
from secateur.network.saving import check_output
from secateur.progress import Progress
from secateur.recipe import Prune, Recipe, Search
from secateur.run_windows import RunWindows

STUDY = "study.db"
RECIPE = "recipe.yaml"
FRONT = "front"
DENSE = "dense.npy"
REMEMBERED = 64  # candidates of which it is known what pieces of the text gave


def search_folder(output: Path) -> Path:
    """Returns the folder of the state of a search that writes `output`."""
    return output.parent / f".{output.name}.search"


@dataclass(frozen=True)
class Found:
    """What a search found.

    Attributes:
        recipe: What prunes as the best candidate says, as plain data.
        told: What the search came to, as plain data.
        folder: Where the search's state is, if it is in files.
        front: The same as `recipe` for each trial of the front, where there are several goals.
        worth: What a model is worth that gives up as much as the best candidate, on the tokens that candidates were
            judged on; None where candidates are what is kept.
    """

    recipe: dict[str, Any]
    told: dict[str, Any]
    folder: Path | None
    front: Mapping[int, dict[str, Any]] = field(default_factory=dict)
    worth: Callable[[Network], float] | None = None

    def judge(self, network: Network) -> None:
        """Notes what the model is worth that was solved for good, beside the candidate that was put together."""
        if self.worth is not None and math.isfinite(worth := self.worth(network)):
            self.told["solved"] = worth

    def write(self, output: Path) -> None:
        """Puts the recipe, those of the front, and the study into the output."""
        _write(self.recipe, output / RECIPE)
        for number, recipe in self.front.items():
            (output / FRONT).mkdir(exist_ok=True)
            _write(recipe, output / FRONT / f"trial-{number}.yaml")
        if self.folder is not None and (self.folder / STUDY).is_file():
            shutil.copy2(self.folder / STUDY, output / STUDY)

    def close(self) -> None:
        """Removes what is large of the search's state."""
        if self.folder is not None:
            (self.folder / DENSE).unlink(missing_ok=True)

    def forget(self) -> None:
        """Removes the search's state."""
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)


def _write(recipe: Mapping[str, Any], file: Path) -> None:
    file.write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")


def find_recipe(recipe: Recipe, progress: Progress, resume: bool) -> tuple[Recipe, Found]:
    """Searches for how much goes where.

    Args:
        recipe: A recipe with a search.
        progress: Shows progress.
        resume: Whether trials that the study has are gone on from.

    Returns:
        The recipe that prunes as the best candidate says, without a search, and what the search came to.

    Raises:
        UsageError: The search's levels can't meet the target.
        SearchError: The study can't be used, or no candidate could be judged.
    """
    assert recipe.search is not None
    assert recipe.output is not None
    settings, (stage,), output = recipe.search, recipe.prunes, Path(recipe.output).expanduser()
    check_output(output, recipe.overwrite)
    strategy_of = _strategy(settings)
    own = ":" in settings.reward
    if own:
        function_at(settings.reward, "(network, tokens)")  # an error now, if it is missing
    folder, storage = _opened(output, settings, resume, recipe.overwrite)
    begun = time.perf_counter()
    network, windows = _prepared(recipe, progress)
    if network.model.get_output_embeddings() is None and "losses" not in settings.model_fields_set:
        settings = settings.model_copy(update={"losses": "layer"})
        progress.say("the model predicts no tokens, so the knapsack goes by the layers' own errors (losses: layer).")
    if settings.table is None and not own:
        settings = _fewer(settings, windows)
    root = Path(settings.levels).expanduser() if settings.levels else output.parent / ".secateur-levels"
    kind = UnitSearch if stage.structured else WeightSearch
    work = kind.prepared(network, recipe, stage, settings, windows, root, progress)
    solved = time.perf_counter() - begun
    strategy = strategy_of(work.space, _start(work.space, settings), settings.tokens, recipe.seed)
    levels = [list(place.amounts) for place in work.space.places]
    about = {"recipe": _about(recipe), "levels": levels, "tokens": int(windows.ids.sum())}
    more = resume or settings.storage is not None
    study = Study(storage, settings.study, about, work.space, more, settings.front)
    compute = recipe.calibration.compute
    quality, words = quality_of(settings, network, _cut(windows, settings), compute, folder / DENSE, progress)
    reward = Reward(words, settings.weigh, settings.limit, settings.front)
    worth = _worth(work, network, quality, reward)
    course = search(strategy, study, worth, settings.most, settings.seconds, progress)
    told = _told(settings, course, study, solved, reward)

    def plain(levels: Levels) -> Recipe:
        return recipe.model_copy(update={"search": None, "stages": work.stages(levels, stage)})

    def solved_worth(network: Network) -> float:
        return reward.of(quality(lambda: network, settings.tokens[-1], 0, {}), told["shares"]).reward

    final = plain(course.best.levels)
    front = {one.number: plain(one.levels).to_dict() for one in course.front} if settings.front else {}
    return final, Found(final.to_dict(), told, folder, front, solved_worth)


def _worth(
    work: WeightSearch | UnitSearch, network: Network, quality: Quality, reward: Reward
) -> Callable[[Proposal], Worth]:
    """Returns what says what a candidate is worth, put together in the dense model."""
    seen: dict[Levels, Known] = {}

    def worth(proposal: Proposal) -> Worth:
        levels = proposal.levels
        shares = work.space.shares(levels)
        if reward.excess(shares) > 0:
            return reward.beyond(shares)

        def candidate() -> Network:
            work.stitched.stand(work.space, levels)
            return network

        seen[levels] = seen.pop(levels, {})  # the last one to be forgotten
        if len(seen) > REMEMBERED:
            del seen[next(iter(seen))]
        return reward.of(quality(candidate, proposal.tokens, proposal.text, seen[levels]), shares)

    return worth


def find_widths(
    work: NetworkSearch,
    settings: Search,
    seed: int,
    output: Path | None,
    progress: Progress,
    resume: bool,
    overwrite: bool,
    recipe: Recipe | None = None,
) -> tuple[Prune, Found]:
    """Searches for how many units each group of a network gives.

    Args:
        work: What is searched over.
        settings: How; its tokens are examples.
        seed: Of the strategy.
        output: Beside which the study is kept; None keeps it in memory.
        progress: Shows progress.
        resume: Whether trials that the study has are gone on from.
        overwrite: Whether those that an earlier search left may be lost.
        recipe: The run, if it is one of a recipe; of a network in memory there are the stages alone.

    Returns:
        The stage that removes what the best candidate says, and what the search came to.

    Raises:
        SearchError: The study can't be used, or no candidate could be judged.
    """
    strategy_of = _strategy(settings)
    if settings.reward != "kl":
        raise UsageError("a network's candidates are judged by their loss on examples: give loss=... for your own.")
    folder, storage = (None, settings.storage) if output is None else _opened(output, settings, resume, overwrite)
    if work.fixed:
        progress.say(f"{', '.join(work.fixed)}: no unit can go there, by round_to and min_units.")
    strategy = strategy_of(work.space, _start(work.space, settings), settings.tokens, seed)
    told = settings.model_dump(mode="json", exclude={"storage", "levels", "trials", "seconds"})
    about = {"search": told, "levels": [list(place.amounts) for place in work.space.places], "seed": seed}
    study = Study(storage, settings.study, about, work.space, resume or settings.storage is not None, settings.front)
    quality = f"minus the mean loss on {settings.tokens[-1]:,} examples"
    reward = Reward(quality, settings.weigh, settings.limit, settings.front)

    def worth(proposal: Proposal) -> Worth:
        return work.judged_as(proposal, reward)

    def plain(levels: Levels) -> dict[str, Any]:
        stages = [{"prune": work.stage_of(levels).model_dump(mode="json")}]
        return {"stages": stages} if recipe is None else {**recipe.to_dict(), "search": None, "stages": stages}

    course = search(strategy, study, worth, settings.most, settings.seconds, progress)
    front = {one.number: plain(one.levels) for one in course.front} if settings.front else {}
    best = course.best.levels
    return work.stage_of(best), Found(plain(best), _told(settings, course, study, 0.0, reward), folder, front)


def _strategy(settings: Search) -> type[Strategy]:
    """Returns the strategy, which can do what is asked of it."""
    found = strategy_named(settings.strategy)
    if settings.front and not found.fronts:
        able = ", ".join(name for name, kind in STRATEGIES.items() if kind.fronts)
        raise UsageError(f"search: strategy '{found.name}' follows one goal; a front is looked for by {able}.")
    return found


def _start(space: Space, settings: Search) -> Levels:
    """Returns the candidate that the search begins with."""
    return space.knapsack() if settings.start == "knapsack" else space.uniform()


@contextmanager
def tidied(output: Path | None) -> Iterator[None]:
    """Removes what is of no use of a search's state, if it fails: all of it where there is no trial yet."""
    try:
        yield
    except BaseException:
        if output is not None:
            folder = search_folder(output)
            (folder / DENSE).unlink(missing_ok=True)
            with suppress(SearchError):  # a study that can't be read stays
                if not kept_trials(folder / STUDY):
                    shutil.rmtree(folder, ignore_errors=True)
        raise


def begun_folder(output: Path, more: bool, overwrite: bool) -> Path:
    """Returns the folder of a search's state, empty unless there may be more to it.

    Raises:
        ResumeError: An earlier search left trials that would be lost without a word.
    """
    folder = search_folder(output)
    if not more:
        if not overwrite and (trials := kept_trials(folder / STUDY)):
            raise ResumeError(
                f"of an earlier search, {trials} trials are kept in {folder}: the same command with --resume goes on; "
                "with --overwrite, starts anew."
            )
        shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _opened(output: Path, settings: Search, resume: bool, overwrite: bool) -> tuple[Path, str]:
    """Returns the folder of a search's state, and the storage of its study, which can be reached."""
    folder = begun_folder(output, resume or settings.storage is not None, overwrite)
    storage = settings.storage or f"sqlite:///{folder / STUDY}"
    opened(storage)  # an error now, if it can't be reached
    return folder, storage


def _prepared(recipe: Recipe, progress: Progress) -> tuple[Network, Windows]:
    network = load(
        recipe.model,
        dtype=recipe.dtype,
        device=recipe.device,
        trust_remote_code=recipe.trust_remote_code,
        seed=recipe.seed,
        stream=False,
        progress=progress,
    )
    windows, _ = RunWindows(recipe, progress, []).read(network)  # what the run holds back, the search doesn't see
    if windows is None:
        raise UsageError("search: candidates are judged on the calibration's text, and the stage needs none; give one.")
    return network, windows


def _cut(windows: Windows, settings: Search) -> Windows:
    """Returns the windows in pieces of as many tokens as the first rung has, where they are longer."""
    length = min(windows.length, settings.tokens[0])
    if length == windows.length:
        return windows
    pieces = windows.length // length
    ids = windows.ids[:, : pieces * length].reshape(-1, length)
    return replace(windows, ids=ids, bytes=None, text=None)


def _fewer(settings: Search, windows: Windows) -> Search:
    """Returns the search with no more tokens to judge on than there are, where nothing was said of them.

    Raises:
        UsageError: More were asked for.
    """
    if "tokens" not in settings.model_fields_set and windows.tokens < settings.tokens[-1]:
        known = windows.length * len(windows)
        fewer = (*(tokens for tokens in settings.tokens if tokens < known), known)
        settings = settings.model_copy(update={"tokens": fewer})
    windows_of(_cut(windows, settings), settings.tokens[-1])
    return settings


def _about(recipe: Recipe) -> dict[str, Any]:
    """Returns what all workers of a search have to agree on."""
    told = recipe.to_dict()
    for name in ("output", "overwrite", "evaluate"):
        told.pop(name)
    for name in ("storage", "levels", "trials", "seconds"):
        told["search"].pop(name)
    return told


def _told(settings: Search, course: Course, study: Study, solved: float, reward: Reward) -> dict[str, Any]:
    """Returns what the search came to, as plain data."""
    best, steps, judged = -math.inf, [], []
    begun = min(trial.datetime_start for trial in study.trials() if trial.datetime_start is not None)
    for trial in study.trials():
        about = trial.user_attrs
        if not trial.values or about["tokens"] != settings.tokens[-1] or about.get("quality") is None:
            continue
        if about["shares"]:
            judged.append({"trial": trial.number, "quality": about["quality"], "shares": about["shares"]})
        if trial.values[0] > best:
            best = trial.values[0]
            assert trial.datetime_complete is not None
            steps.append(
                {"trial": trial.number, "seconds": (trial.datetime_complete - begun).total_seconds(), "value": best}
            )
    by_number = {trial.number: trial.user_attrs for trial in study.trials()}
    failures = Counter(about["failure"] for about in by_number.values() if "failure" in about)
    return {
        "strategy": settings.strategy,
        "reward": reward.words,
        "trials": len(study.trials()),
        "failures": dict(failures),
        "seconds": course.seconds,
        "seconds_levels": solved,
        "start": course.start.value,
        "best": course.best.value,
        "shares": by_number[course.best.number]["shares"],
        "course": steps,
        "judged": judged,
        "front": [one.number for one in course.front] if settings.front else [],
        "chosen": course.best.number,
        "params": {},
        "importances": study.importances(settings.tokens[0]),
    }
