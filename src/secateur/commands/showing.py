"""How a command shows what it found: as a table, or as JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import typer
from rich.console import Console

from secateur.report.terminal import to_text


def show(data: Any, as_json: bool, table: Callable[[], Any]) -> None:
    """Prints data as JSON, or the table of it: in colour on a terminal, plain elsewhere."""
    if as_json:
        typer.echo(json.dumps(data, indent=1))
    elif sys.stdout.isatty():
        Console(width=min(100, Console().width)).print(table())
    else:
        typer.echo(to_text(table()))
