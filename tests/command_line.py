"""The command line in this process: `done = secateur("prune", model, "-o", out)`."""

from __future__ import annotations

import io
import signal
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass

import pytest

from secateur import cli


@dataclass(frozen=True)
class Outcome:
    """What a command left behind: its exit code and its two streams."""

    code: int
    out: str
    err: str


def secateur(*arguments: object) -> Outcome:
    """Runs the real entry point in this process, and puts back what it sets for the whole process."""
    out, err = io.StringIO(), io.StringIO()
    handlers = {kind: signal.getsignal(kind) for kind in (signal.SIGINT, signal.SIGTERM)}
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(sys, "argv", ["secateur", *map(str, arguments)])
        patch.setattr(sys, "excepthook", sys.excepthook)
        patch.setattr(sys, "unraisablehook", sys.unraisablehook)
        try:
            cli.main()
        except SystemExit as left:
            code = left.code
        finally:
            for kind, handler in handlers.items():
                signal.signal(kind, handler)
    return Outcome(int(code or 0), out.getvalue(), err.getvalue())
