"""A search's trials, kept by Optuna: in a SQLite file, or wherever else several workers find them."""

from __future__ import annotations

import json
import os
import socket
import uuid
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, IntDistribution
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from secateur.automl.reward import Worth
from secateur.automl.space import Space
from secateur.automl.strategies import Judged, Proposal
from secateur.errors import SearchError

LEAST = 20  # trials that say how much a place matters
PATIENCE = 10  # times the longest trial, and a minute, after which a running one counts as lost


class Study:
    """The trials of one search, which several workers may share."""

    def __init__(
        self,
        url: str | None,
        name: str,
        about: Mapping[str, Any],
        space: Space,
        more: bool,
        others: Sequence[str] = (),
    ) -> None:
        """Opens a study, or begins one.

        Args:
            url: Of the storage, as Optuna takes it: `sqlite:///study.db`, `postgresql://...`; None keeps it in memory.
            name: The study's name.
            about: What all workers have to agree on, as plain data.
            space: What is chosen from.
            more: Whether trials that are there are gone on from.
            others: Measures that make a front with the reward.

        Raises:
            SearchError: The storage can't be reached, or the study is of another search.
        """
        self.space = space
        place = "memory" if url is None else _hidden(url)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        try:
            self.study = optuna.create_study(
                study_name=name,
                storage=url,
                directions=[StudyDirection.MAXIMIZE, *(StudyDirection.MINIMIZE for _ in others)],
                load_if_exists=True,
                sampler=_Nothing(),
            )
            known = self.study.user_attrs.get("about")
        except Exception as error:  # whatever the storage's driver raises
            raise _unusable(url or "memory", error) from error
        told = json.loads(json.dumps(about))
        if known is None:
            self.study.set_user_attr("about", told)
        elif known != told:
            which = sorted(key for key in {*known, *told} if known.get(key) != told.get(key))
            raise SearchError(
                f"the study '{name}' in {place} is of another search ({', '.join(which)} differ); give another "
                "--storage or --study, or the command that began it."
            )
        elif not more and self.study.get_trials(deepcopy=False):
            raise SearchError(
                f"the study '{name}' in {place} has trials already: --resume goes on from them, and with "
                "--storage several workers share them."
            )
        self.distributions: dict[str, BaseDistribution] = {
            place.name: IntDistribution(0, len(place.costs) - 1) for place in space.places
        }
        self.worker = f"{socket.gethostname()}:{os.getpid()}"
        self._seen: set[int] = set()

    def begin(self, proposal: Proposal) -> FrozenTrial:
        """Puts a candidate into the study as a trial that is running, and returns it."""
        mark = uuid.uuid4().hex
        params = {place.name: level for place, level in zip(self.space.places, proposal.levels, strict=True)}
        about = {"mark": mark, "worker": self.worker, "tokens": proposal.tokens, "info": dict(proposal.info)}
        trial = create_trial(
            state=TrialState.RUNNING, params=params, distributions=self.distributions, user_attrs=about
        )
        self.study.add_trial(trial)
        running = self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        return next(one for one in running if one.user_attrs.get("mark") == mark)

    def end(self, trial: FrozenTrial, worth: Worth | None, failure: str = "") -> None:
        """Says what a trial was worth; None where judging it failed, and why."""
        noted = optuna.trial.Trial(self.study, trial._trial_id)
        if worth is None:
            noted.set_user_attr("failure", failure)
            self.study.tell(trial.number, state=TrialState.FAIL)
        else:
            noted.set_user_attr("quality", worth.quality)
            noted.set_user_attr("shares", dict(worth.shares))
            self.study.tell(trial.number, (worth.reward, *worth.others))
        self._seen.add(trial.number)

    def news(self) -> list[Judged]:
        """Returns the trials that have ended since this was asked last, but for this worker's own, in their order."""
        ended = self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.FAIL))
        found = [self._judged(trial) for trial in ended if trial.number not in self._seen]
        self._seen.update(one.number for one in found)
        return found

    def _judged(self, trial: FrozenTrial) -> Judged:
        levels = tuple(int(trial.params[place.name]) for place in self.space.places)
        about = trial.user_attrs
        value, *others = trial.values if trial.state == TrialState.COMPLETE else (None,)
        info = about.get("info", {})
        return Judged(trial.number, levels, int(about["tokens"]), value, info, own=False, others=tuple(others))

    def bury(self) -> int:
        """Ends the trials of workers that must have died, and returns how many they were."""
        done = self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        longest = max((one.duration for one in done if one.duration is not None), default=timedelta())
        limit = datetime.now() - PATIENCE * longest - timedelta(minutes=1)
        lost = 0
        for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            host, _, process = trial.user_attrs.get("worker", ":").rpartition(":")
            here = host == socket.gethostname() and trial.user_attrs["worker"] != self.worker
            dead = here and process.isdigit() and not _alive(int(process))
            if dead or (trial.datetime_start is not None and trial.datetime_start < limit):
                self.study.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)
                lost += 1
        return lost

    def importances(self, tokens: int) -> dict[str, float]:
        """Returns how much each place matters among the trials on a number of tokens, adding up to 1; the most first.

        By the variance that it explains among the better trials (PED-ANOVA, Watanabe et al. 2023); empty where there
        are too few trials.
        """
        complete = self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        trials = [trial for trial in complete if trial.user_attrs["tokens"] == tokens]
        if len(trials) < LEAST or len({trial.values[0] for trial in trials}) < 2:
            return {}
        study = optuna.create_study(direction="maximize")
        study.add_trials(
            create_trial(params=one.params, distributions=one.distributions, value=one.values[0]) for one in trials
        )
        evaluator = optuna.importance.PedAnovaImportanceEvaluator()
        return dict(optuna.importance.get_param_importances(study, evaluator=evaluator))

    def trials(self) -> Sequence[FrozenTrial]:
        """Returns all trials, in their order."""
        return self.study.get_trials(deepcopy=False)


def check_storage(url: str) -> None:
    """Raises SearchError if a storage can't be reached."""
    try:
        optuna.storages.get_storage(url)
    except Exception as error:  # whatever the storage's driver raises
        raise _unusable(url, error) from error


def _unusable(url: str, error: Exception) -> SearchError:
    why = (str(error).strip().splitlines() or [type(error).__name__])[0]
    driver = " For PostgreSQL: pip install 'psycopg[binary]'." if isinstance(error, ImportError) else ""
    return SearchError(f"the storage {_hidden(url)} can't be used: {why}{driver}")


class _Nothing(optuna.samplers.RandomSampler):
    """A study of ours is never asked: strategies propose."""


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _hidden(url: str) -> str:
    """Returns a URL without its password."""
    head, at, tail = url.rpartition("@")
    scheme, mark, rest = head.partition("://")
    return f"{scheme}{mark}{rest.partition(':')[0]}@{tail}" if at and mark else url
