"""The command line: its commands are in `secateur.commands`."""

from __future__ import annotations

from importlib.metadata import version
from typing import Annotated

import typer

from secateur.commands import convert, measure, prune
from secateur.commands.process import carry_out


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(version("secateur"))
        raise typer.Exit


app = typer.Typer(
    help="Prune language models into smaller or sparser checkpoints that stock tools load.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    epilog="Exit codes: 0 done, 1 failed, 2 misused, 130 interrupted.",
)


@app.callback()
def _common(
    show: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    """Prune language models into smaller or sparser checkpoints that stock tools load."""


for commands in (prune.app, measure.app, convert.app):
    app.add_typer(commands)


def main() -> None:
    """The entry point."""
    carry_out(app)
