"""One run at a time for each output."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from secateur.errors import SaveError, UsageError
from secateur.network.saving import explain
from secateur.processes import ALONE, Processes


@contextmanager
def only_run(output: Path, team: Processes = ALONE) -> Iterator[None]:
    """Keeps other runs from an output, and from the state beside it, for as long as this one lives.

    The operating system gives the lock back when a process dies, however it does.

    Args:
        output: The folder that the run is to write.
        team: The processes of the run; the first one holds the lock.

    Raises:
        UsageError: Another run holds it.
        SaveError: Nothing can be written there.
    """
    path = output.parent / f".{output.name}.lock"
    made = [parent for parent in path.parents if not parent.exists()]
    lock = FileLock(path, timeout=0)
    try:
        if team.first:
            _try(lock, output)
        if not team.share(lock.is_locked):
            raise UsageError(f"another run is writing {output}; wait until it is done, or choose another name.")
        yield
    finally:
        if lock.is_locked:
            path.unlink(missing_ok=True)
            lock.release()
            with suppress(OSError):  # folders that have something in them now
                for parent in made:
                    parent.rmdir()


def _try(lock: FileLock, output: Path) -> None:
    try:
        with suppress(Timeout):
            lock.acquire()
    except OSError as error:
        raise SaveError(explain(error, output)) from error
