"""The search itself: ask, put together, judge, tell."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from secateur.automl.reward import OUTSIDE, Worth
from secateur.automl.strategies import Judged, Proposal, Strategy
from secateur.automl.study import Study
from secateur.errors import SearchError, raised_at
from secateur.progress import Progress

FAILURES = 3  # in a row, after which the search stops


@dataclass(frozen=True)
class Course:
    """What a search came to.

    Attributes:
        best: The best candidate, on the most tokens.
        front: The candidates that none beats by every goal.
        start: The first one, on the most tokens.
        trials: How many candidates this worker judged.
        seconds: Wall time.
    """

    best: Judged
    front: tuple[Judged, ...]
    start: Judged
    trials: int
    seconds: float


def search(
    strategy: Strategy,
    study: Study,
    worth: Callable[[Proposal], Worth],
    trials: int | None,
    seconds: float | None,
    progress: Progress,
) -> Course:
    """Judges candidates until their number or the time is over.

    Args:
        strategy: Proposes them.
        study: Keeps them; what it has already is gone on from.
        worth: What a candidate is worth on the tokens that it is to be judged on.
        trials: How many the study has in the end, at most.
        seconds: Wall time at most.
        progress: Shows progress.

    Raises:
        SearchError: No candidate could be judged, or three in a row couldn't.
    """
    began, own, failed, last = time.perf_counter(), 0, 0, ""
    start: Judged | None = None
    tick = progress.bar("searching", trials if trials is not None else 100)
    shown = 0

    def over() -> float:
        """The share of the search that is over."""
        spent = 0.0 if seconds is None else (time.perf_counter() - began) / seconds
        done = 0.0 if trials is None else len(study) / trials
        return max(spent, done)

    while True:
        for judged in study.news():
            start = judged if start is None and judged.info.get("start") and judged.value is not None else start
            strategy.tell(judged)
        way = over()
        steps = math.floor(min(1.0, way) * (trials if trials is not None else 100))
        for _ in range(steps - shown):
            tick()
        shown = max(shown, steps)
        if way >= 1:
            break
        proposal = strategy.ask(len(study))
        begun = datetime.now()
        found: Worth | None = None
        try:
            found = worth(proposal)
        except Exception as error:  # a reward of the user's own may raise anything
            last = raised_at(error)
        if found is not None and not math.isfinite(found.reward):
            last, found = f"its reward came out as {found.reward}", None
        study.add(proposal, begun, found, last)
        own += 1
        failed = failed + 1 if found is None else 0
        if failed == FAILURES:
            raise SearchError(f"{FAILURES} candidates in a row couldn't be judged; the last one: {last}.")
    if strategy.best is None or start is None:
        raise SearchError(
            "the search was over before one candidate was judged on all tokens; give it more --seconds or --trials, "
            "and --resume to go on from here."
        )
    assert strategy.best.value is not None
    if strategy.best.value <= -OUTSIDE:
        number = strategy.best.number
        shares = next(trial.user_attrs["shares"] for trial in study.trials() if trial.number == number)
        left = ", ".join(f"{share:.1%} of {measure}" for measure, share in shares.items())
        raise SearchError(
            f"no candidate keeps the limits; the nearest one, trial {number}, leaves {left}. Allow more, or give more "
            "--trials or --seconds and --resume."
        )
    return Course(strategy.best, tuple(strategy.front), start, own, time.perf_counter() - began)
