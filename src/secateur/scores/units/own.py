"""The user's own score: a function named by an import path."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable

from torch import Tensor

from secateur.calibration.statistics import Needs
from secateur.errors import ScoreError, SecateurError, UsageError, did_you_mean, first_line
from secateur.import_path import function_at
from secateur.network.unit_group import UnitGroup
from secateur.scores.unit_score import ALL_UNITS, UnitScore, UnitStatistics


class Own(UnitScore):
    """Calls a function (group, statistics) -> (units,) tensor.

    The function may say more by attributes: `needs`, the statistics that it reads (the moments, if it doesn't say), and
    `fits`, the kinds of units that it is for (all of them).
    """

    about = "the user's own function"

    def __init__(
        self, name: str, function: Callable[[UnitGroup, UnitStatistics], Tensor], needs: Needs = Needs.MOMENTS
    ) -> None:
        """
        Args:
            name: What it is called in messages.
            function: The function.
            needs: What it reads, if it doesn't say.

        Raises:
            UsageError: The function's attributes aren't what they should be.
        """
        self.name = name
        self.function = function
        self.needs = getattr(function, "needs", needs)
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
                f"({place.filename}, line {place.lineno})."
            ) from error


def _kinds(name: str, fits: Iterable[str]) -> frozenset[str]:
    kinds = frozenset([fits] if isinstance(fits, str) else fits)
    for kind in sorted(kinds - ALL_UNITS):
        raise UsageError(f"{name}.fits has the unknown unit '{kind}'.{did_you_mean(kind, ALL_UNITS)}")
    return kinds


def own_score(path: str, needs: Needs = Needs.MOMENTS) -> Own:
    """Returns the score that an import path names; see `function_at` and `Own`."""
    return Own(path, function_at(path, "(group, statistics)"), needs)
