"""The entry point: light, so that an interrupt is answered politely while the libraries are still loading."""

import os
import sys


def main() -> None:
    """Runs the command line."""
    try:
        from secateur.cli import main as command_line  # noqa: PLC0415 (takes seconds)
    except KeyboardInterrupt:
        sys.stderr.write("error: interrupted; nothing half-written was left behind.\n")
        sys.stderr.flush()
        os._exit(130)  # after an interrupt in generated code (dataclasses), sys.exit would die of the signal
    command_line()


if __name__ == "__main__":
    main()
