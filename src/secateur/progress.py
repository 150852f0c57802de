"""Progress that a caller can watch: silent by default, bars in the terminal for the command line."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import AbstractContextManager
from types import TracebackType
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

T = TypeVar("T")
SAID_EVERY = 30  # seconds, where lines stand for bars


class Progress(AbstractContextManager["Progress"]):
    """Shows nothing. The base of what shows something."""

    def track(self, items: Iterable[T], label: str, total: int | None = None) -> Iterator[T]:
        """Yields from `items`; `total` is their number where `len` can't tell."""
        return iter(items)

    def bar(self, label: str, total: int) -> Callable[[], None]:
        """Shows a bar of `total` steps; calling what comes back moves it by one."""
        return lambda: None

    def say(self, message: str) -> None:
        """Tells the user one line."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None


class TerminalProgress(Progress):
    """Bars and lines on the terminal's error stream, so that results can be piped."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(file=sys.stderr)
        self._bars = Bars(
            TextColumn("{task.description:<30}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self.console,
            disable=not self.console.is_interactive,  # in a pipe or log they would be but an empty line
        )

    def __enter__(self) -> TerminalProgress:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def track(self, items: Iterable[T], label: str, total: int | None = None) -> Iterator[T]:
        size = len(items) if total is None and isinstance(items, Sized) else total
        if self.console.is_interactive or size is None:
            return iter(self._bars.track(items, total=size, description=label))
        return self._said(items, self.bar(label, size))

    def _said(self, items: Iterable[T], tick: Callable[[], None]) -> Iterator[T]:
        for item in items:
            yield item
            tick()

    def bar(self, label: str, total: int) -> Callable[[], None]:
        if not self.console.is_interactive:
            return _Lines(self.say, label, total)
        task = self._bars.add_task(label, total=total)
        return lambda: self._bars.advance(task)

    def say(self, message: str) -> None:
        self.console.print(message, highlight=False, soft_wrap=True)


class _Lines:
    """In a pipe or a log, where bars aren't shown: says what begins, and now and then how far it is."""

    def __init__(self, say: Callable[[str], None], label: str, total: int) -> None:
        self._say, self._label, self._total = say, label, total
        self._done = 0
        self._said = time.monotonic()
        say(f"{label} ...")

    def __call__(self) -> None:
        self._done += 1
        if time.monotonic() - self._said >= SAID_EVERY and self._done < self._total:
            self._said = time.monotonic()
            self._say(f"{self._label}: {self._done / self._total:.0%}")
