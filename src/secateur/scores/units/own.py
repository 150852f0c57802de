"""The user's own score: a function named by an import path, `module:function` or `path/to/file.py:function`."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import Tensor

from secateur.calibration.statistics import Needs
from secateur.errors import ScoreError, SecateurError, UsageError, did_you_mean, first_line
from secateur.network.units import UnitGroup
from secateur.scores.unit_score import ALL_UNITS, UnitScore, UnitStatistics


class Own(UnitScore):
    """Calls a function (group, statistics) -> (units,) tensor.

    The function may say more by attributes: `needs`, the statistics that it reads (the moments, if it doesn't say), and
    `fits`, the kinds of units that it is for (all of them).
    """

    about = "the user's own function"

    def __init__(self, name: str, function: Callable[[UnitGroup, UnitStatistics], Tensor]) -> None:
        """Raises UsageError if the function's attributes aren't what they should be."""
        self.name = name
        self.function = function
        self.needs = getattr(function, "needs", Needs.MOMENTS)
        if not isinstance(self.needs, Needs):
            raise UsageError(f"{name}.needs must be a secateur Needs, such as Needs.GRAM, but is {self.needs!r}.")
        self.fits = _kinds(name, getattr(function, "fits", ALL_UNITS))

    def score(self, group: UnitGroup, statistics: UnitStatistics) -> Tensor:
        try:
            return self.function(group, statistics)
        except SecateurError:
            raise
        except Exception as error:
            place = traceback.extract_tb(error.__traceback__)[-1]
            raise ScoreError(
                f"the score '{self.name}' raised {type(error).__name__} for {group.name}: {first_line(error)} "
                f"({place.filename}, line {place.lineno}). --debug shows the way there."
            ) from error


def _kinds(name: str, fits: Iterable[str]) -> frozenset[str]:
    kinds = frozenset([fits] if isinstance(fits, str) else fits)
    for kind in sorted(kinds - ALL_UNITS):
        raise UsageError(f"{name}.fits has the unknown unit '{kind}'.{did_you_mean(kind, ALL_UNITS)}")
    return kinds


def own_score(path: str) -> Own:
    """Returns the score that an import path names. The current directory can be imported from.

    Raises:
        UsageError: The file, the module, or the function in it is missing or can't be used.
    """
    source, _, function = path.rpartition(":")
    if not source or not function:
        raise UsageError(f"'{path}' is no import path; write module:function or path/to/file.py:function.")
    with _current_directory():
        module = _from_file(Path(source)) if source.endswith(".py") else _from_module(source)
    found: Any = getattr(module, function, None)
    if found is None:
        known = [name for name, one in vars(module).items() if callable(one) and not name.startswith("_")]
        raise UsageError(f"{source} has no function '{function}'.{did_you_mean(function, known) if known else ''}")
    if not callable(found):
        raise UsageError(f"{path} is a {type(found).__name__}, not a function of (group, statistics).")
    return Own(path, found)


@contextmanager
def _current_directory() -> Iterator[None]:
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        yield
    finally:
        sys.path.remove(here)


def _from_module(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = error.name or name
        if name == missing or name.startswith(f"{missing}."):
            raise UsageError(f"there is no module '{missing}', neither installed nor in {Path.cwd()}.") from error
        raise UsageError(f"the module '{name}' imports '{missing}', which isn't installed.") from error
    except (ImportError, SyntaxError, ValueError) as error:
        raise UsageError(f"the module '{name}' can't be imported: {first_line(error)}.") from error


def _from_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise UsageError(f"there is no file {path.resolve()}.")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (ImportError, SyntaxError) as error:
        raise UsageError(f"{path} can't be imported: {first_line(error)}.") from error
    return module
