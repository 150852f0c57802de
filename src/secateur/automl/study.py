"""A search's trials, kept by Optuna: in a SQLite file, or wherever else several workers find them."""

from __future__ import annotations

import json
import os
import socket
import uuid
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import optuna
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from secateur.automl.reward import Worth
from secateur.automl.space import Space
from secateur.automl.storage import opened, unusable, without_password
from secateur.automl.strategies import Judged, Proposal
from secateur.automl.trials import distributions_of, params_of
from secateur.errors import SearchError

LEAST = 20  # trials that say how much a place matters


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
        place = "memory" if url is None else without_password(url)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        storage = None if url is None else opened(url)
        try:
            self.study = optuna.create_study(
                study_name=name,
                storage=storage,
                directions=[StudyDirection.MAXIMIZE, *(StudyDirection.MINIMIZE for _ in others)],
                load_if_exists=True,
                sampler=_Nothing(),
            )
            known = self.study.user_attrs.get("about")
        except Exception as error:  # whatever the storage's driver raises
            raise unusable(place, error) from error
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
        self.distributions = distributions_of(space)
        self.worker = f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:8]}"
        self._seen: set[int] = set()

    def add(self, proposal: Proposal, began: datetime, worth: Worth | None, failure: str = "") -> None:
        """Puts a candidate into the study that has been judged, in one transaction: there are no half trials.

        Args:
            proposal: The candidate.
            began: When it was begun to be judged.
            worth: What it was worth; None where judging it failed.
            failure: Why it failed.
        """
        about = {"worker": self.worker, "tokens": proposal.tokens, "text": proposal.text, "info": dict(proposal.info)}
        if worth is None:
            about |= {"failure": failure}
        else:
            about |= {"quality": worth.quality, "shares": dict(worth.shares)}
        trial = create_trial(
            state=TrialState.FAIL if worth is None else TrialState.COMPLETE,
            values=None if worth is None else (worth.reward, *worth.others),
            params=params_of(self.space, proposal.levels),
            distributions=self.distributions,
            user_attrs=about,
        )
        trial.datetime_start = began
        self.study.add_trial(trial)

    def __len__(self) -> int:
        """How many trials there were when `news` was asked for last."""
        return len(self._seen)

    def news(self) -> list[Judged]:
        """Returns the trials that have been added since this was asked last, in their order."""
        found = [self._judged(trial) for trial in self.trials() if trial.number not in self._seen]
        self._seen.update(one.number for one in found)
        return found

    def _judged(self, trial: FrozenTrial) -> Judged:
        levels = tuple(int(trial.params[place.name]) for place in self.space.places)
        about = trial.user_attrs
        value, *others = trial.values if trial.state == TrialState.COMPLETE else (None,)
        return Judged(
            number=trial.number,
            levels=levels,
            tokens=int(about["tokens"]),
            value=value,
            info=about["info"],
            own=about["worker"] == self.worker,
            others=tuple(others),
            text=int(about["text"]),
        )

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


class _Nothing(optuna.samplers.RandomSampler):
    """A study of ours is never asked: strategies propose."""
