"""The errors that secateur raises. Each message says what happened, where, and what to do."""

from __future__ import annotations

import difflib
import traceback
from collections.abc import Iterable
from pathlib import Path


class SecateurError(Exception):
    """Something failed. The command line prints the message in one line and exits with 1."""

    exit_code = 1


class UsageError(SecateurError):
    """What was asked for makes no sense as written: a flag, a recipe, a name. Exit code 2."""

    exit_code = 2


class ModelError(SecateurError):
    """A model can't be found, read, or is of a kind that we don't know."""


class CalibrationError(SecateurError):
    """Calibration data or the statistics taken from it can't be used."""


class ScoreError(SecateurError):
    """A score can't be computed, or came out as NaN or with the wrong shape."""


class ConstantScoreError(ScoreError):
    """A score is the same for all units of a group."""


class SolverError(SecateurError):
    """A solver can't give a result, for instance as a Gram matrix isn't positive definite."""


class SearchError(SecateurError):
    """A search can't go on: its storage, its study, or what candidates are worth."""


class TrainingError(SecateurError):
    """Training can't go on, for instance as its loss is NaN."""


class PatternError(UsageError):
    """An N:M pattern that makes no sense, or doesn't divide a layer's width."""


class NothingPrunedError(SecateurError):
    """A run would have left the model as it was."""


class MaskError(SecateurError):
    """A mask can't be read, doesn't fit a network, or isn't held by it."""


class ResumeError(UsageError):
    """There is nothing to resume, or what is there belongs to another run."""


class ProcessError(SecateurError):
    """Another process of the same run has died."""


class SaveError(SecateurError):
    """The output can't be written, or the written checkpoint doesn't reload as it should."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Returns ' Did you mean X?' for a near miss, and the list of what is known."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=1)
    hint = f" Did you mean '{near[0]}'?" if near else ""
    return f"{hint} Known: {', '.join(known)}."


def first_line(error: BaseException) -> str:
    """Returns the first line of an error's message, or its kind if it has none."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


def raised_at(error: BaseException) -> str:
    """Returns an error's kind and message, and where somebody else's code raised it."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    return first_line(error) if isinstance(error, SecateurError) else f"{type(error).__name__}: {error}{where}"


class ExportError(SecateurError):
    """An export failed, or gives other outputs than the model."""
