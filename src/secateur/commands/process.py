"""What a command's process does about errors and signals: one line each, and an exit code."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, NoReturn

import typer
from rich.console import Console

from secateur.errors import SecateurError
from secateur.network.saving import explain
from secateur.progress import Progress, TerminalProgress

INTERRUPTED = 130
RANK = os.environ.get("RANK", "0")  # set by torchrun
# The base of what the parser raises; typer names the module that it lives in differently from release to release.
Misuse: type[Exception] = typer.BadParameter.__mro__[1]


def carry_out(app: typer.Typer) -> NoReturn:
    """Carries out the command that the process was called with, and leaves with its exit code."""
    signal.signal(signal.SIGTERM, _terminated)
    if "--debug" not in sys.argv:
        sys.excepthook = _unexpected
    sys.unraisablehook = _once_more
    # get_command(app), as app() would put typer's own excepthook in place of ours
    code = _parse_and_run(typer.main.get_command(app))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # all is done or cleaned up; leaving takes a moment
    if code == INTERRUPTED:
        sys.stdout.flush()
        os._exit(code)  # if a library was just executing generated code, python itself would die of the signal
    sys.exit(code)


def _parse_and_run(command: Any) -> int:
    """Returns the exit code; what the parser doesn't understand gets one line like any other error."""
    try:
        code = command(standalone_mode=False) or 0
    except typer.Abort:
        code = INTERRUPTED
    except Misuse as error:
        found: Any = error
        if message := found.format_message():  # empty where the help was printed instead
            path = found.ctx.command_path if found.ctx else "secateur"
            end = "" if message.endswith((".", "?")) else "."
            complain(f"{message}{end} '{path} --help' says more.")
        return int(found.exit_code)
    if code == INTERRUPTED:
        complain("interrupted; there is no half-written output.")
    return int(code)


def _terminated(number: int, frame: FrameType | None) -> NoReturn:
    """A polite kill cleans up as Ctrl-C does."""
    raise KeyboardInterrupt


def _once_more(unraisable: Any) -> None:
    """An interrupt that hits a destructor or a callback is lost there, so it is sent again a moment later."""
    if not issubclass(unraisable.exc_type, KeyboardInterrupt):
        sys.__unraisablehook__(unraisable)
        return
    again = threading.Timer(0.05, signal.raise_signal, [signal.SIGINT])
    again.daemon = True
    again.start()


def _unexpected(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """One line for a bug of ours; python exits with 1 after it."""
    complain(f"unexpected {kind.__name__}: {error}. Please report it, with what --debug prints.")


@contextmanager
def friendly(debug: bool, quiet: bool) -> Iterator[Progress]:
    """Gives a progress display, and turns errors into one line and an exit code."""
    try:
        with Progress() if quiet or RANK != "0" else TerminalProgress() as progress:
            yield progress
    except SecateurError as error:
        if debug:
            raise
        complain(str(error))
        raise typer.Exit(error.exit_code) from error
    except OSError as error:
        if debug:
            raise
        complain(explain(error, Path(error.filename or "the output")))
        raise typer.Exit(1) from error
    except MemoryError as error:
        if debug:
            raise
        complain("out of memory; use fewer --samples or a shorter --length.")
        raise typer.Exit(1) from error
    except KeyboardInterrupt as error:
        raise typer.Exit(INTERRUPTED) from error  # main says so


def complain(message: str) -> None:
    line = ("" if RANK == "0" else f"rank {RANK}: ") + " ".join(message.split())
    Console(stderr=True).print(f"error: {line}", style="red", markup=False, highlight=False, soft_wrap=True)
