"""The entry point: light, so that an interrupt is answered politely while the libraries are still loading."""

import os
import signal


def leave(_signal: int, _frame: object) -> None:
    """Ends the process at once: an exception in the middle of an import is swallowed or changed by some libraries."""
    os.write(2, b"error: interrupted; nothing half-written was left behind.\n")
    os._exit(130)


def main() -> None:
    """Runs the command line."""
    before = signal.signal(signal.SIGINT, leave)
    from secateur.cli import main as command_line  # noqa: PLC0415 (takes seconds)

    signal.signal(signal.SIGINT, before)
    command_line()


if __name__ == "__main__":
    main()
