"""Progress that a caller can watch: silent by default, bars in the terminal for the command line."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import AbstractContextManager
from types import TracebackType
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

T = TypeVar("T")


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
        self._name(label)
        size = len(items) if total is None and isinstance(items, Sized) else total
        return iter(self._bars.track(items, total=size, description=label))

    def bar(self, label: str, total: int) -> Callable[[], None]:
        self._name(label)
        task = self._bars.add_task(label, total=total)
        return lambda: self._bars.advance(task)

    def _name(self, label: str) -> None:
        """In a pipe or log, where bars aren't shown, at least says what begins."""
        if not self.console.is_interactive:
            self.say(f"{label} ...")

    def say(self, message: str) -> None:
        self.console.print(message, highlight=False, soft_wrap=True)
