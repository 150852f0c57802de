"""Optuna's storages of trials: opened by workers that begin together, and quick with trials of many parameters."""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import Any

from optuna import get_all_study_summaries
from optuna.distributions import BaseDistribution, distribution_to_json
from optuna.storages import RDBStorage

from secateur.errors import SearchError

TRIES = 5  # to open a storage
WAIT = 0.5  # seconds at most between them


class Storage(RDBStorage):
    """A database that takes a new trial's parameters as they are, in one go.

    Optuna asks the database twice about each of them, which takes longer than judging a candidate of a small model. A
    release of Optuna that doesn't call this is slower, and no more.
    """

    def _set_trial_param_without_commit(
        self, session: Any, trial_id: int, param_name: str, value: float, distribution: BaseDistribution, *_: Any
    ) -> None:
        from optuna.storages._rdb import models  # noqa: PLC0415 (private: only where a release calls this)

        told = distribution_to_json(distribution)
        session.add(
            models.TrialParamModel(trial_id=trial_id, param_name=param_name, param_value=value, distribution_json=told)
        )


def opened(url: str) -> RDBStorage:
    """Returns a storage, whose tables other workers may be making at this moment.

    Args:
        url: As Optuna takes it: `sqlite:///study.db`, `postgresql://...`.

    Raises:
        SearchError: It can't be used.
    """
    for left in reversed(range(TRIES)):
        try:
            return Storage(url)
        except ImportError as error:
            raise unusable(url, error) from error
        except Exception as error:  # whatever the storage's driver raises
            if not left:
                raise unusable(url, error) from error
            time.sleep(random.uniform(0.1, 1) * WAIT)
    raise AssertionError


def kept_trials(file: Path) -> int:
    """Returns how many trials a SQLite file holds; none if it is missing.

    Raises:
        SearchError: It can't be read.
    """
    if not file.is_file():
        return 0
    url = f"sqlite:///{file}"
    try:
        return sum(one.n_trials for one in get_all_study_summaries(storage=url))
    except Exception as error:  # whatever the driver raises
        raise unusable(url, error) from error


def unusable(url: str, error: Exception) -> SearchError:
    """Returns what is wrong with a storage, for people."""
    why = (str(error).strip().splitlines() or [type(error).__name__])[0]
    driver = " For PostgreSQL: pip install 'psycopg[binary]'." if isinstance(error, ImportError) else ""
    like = "" if "://" in url else " It is a URL such as sqlite:////home/me/study.db or postgresql://me@host/studies."
    return SearchError(f"the storage {without_password(url)} can't be used: {why}{driver}{like}")


def without_password(url: str) -> str:
    """Returns a URL without its password."""
    head, at, tail = url.rpartition("@")
    scheme, mark, rest = head.partition("://")
    return f"{scheme}{mark}{rest.partition(':')[0]}@{tail}" if at and mark else url
