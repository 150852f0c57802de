"""What benchmarks share: a file of rows that is written after each of them, and the options that choose rows."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from protocol import HERE

Row = dict[str, Any]


class Rows:
    """A file `bench/results/NAME.json`, whose `rows` stand in a given order.

    Attributes:
        data: What the file holds.
        again: Whether rows that are there are measured again.
    """

    def __init__(self, file: Path, command: str, order: Iterable[str], again: bool = False) -> None:
        self.data: Row = json.loads(file.read_text()) if file.is_file() else {"rows": {}}
        self.data["command"] = command
        self.again = again
        self._file, self._order = file, list(order)

    @property
    def rows(self) -> dict[str, Row]:
        """The rows that are there."""
        found: dict[str, Row] = self.data["rows"]
        return found

    def wanted(self, names: Iterable[str] | None) -> list[str]:
        """Returns the rows that are to be measured: of those named, or of all."""
        return [name for name in names or self._order if self.again or name not in self.rows]

    def take(self, name: str, row: Row, quiet: Iterable[str] = ()) -> None:
        """Writes a row, and prints it without what is told to be quiet about."""
        known = {**self.rows, name: row}
        self.data["rows"] = {one: known[one] for one in self._order if one in known}
        self.write()
        print(name, {what: value for what, value in row.items() if what not in quiet}, flush=True)

    def write(self) -> None:
        """Writes the file."""
        self._file.write_text(json.dumps(self.data, indent=1) + "\n")


def parser_of(doc: str | None, only: Iterable[str] | None = None) -> argparse.ArgumentParser:
    """Returns a parser with the options that benchmarks of rows share; `only` are the names that --only knows."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=HERE.parents[1] / "shared" / "data")
    how: Row = {"metavar": "ROW"} if only is None else {"choices": list(only)}
    parser.add_argument("--only", action="append", help="Run only this; repeatable.", **how)
    parser.add_argument("--table", action="store_true", help="Print the tables of what was measured.")
    parser.add_argument("--again", action="store_true", help="Measure rows again that are there.")
    return parser


def take_tasks(
    parser: argparse.ArgumentParser,
    arguments: argparse.Namespace,
    file: Path,
    command: str,
    tasks: dict[str, Callable[[], dict[str, Callable[[], Row]]]],
) -> None:
    """Measures the rows of several tasks that are asked for, and writes the file after each of them.

    Args:
        parser: Says it if --row names a row that a task doesn't have.
        arguments: With `only`, `row` and `again`.
        file: `bench/results/NAME.json`.
        command: What wrote it.
        tasks: By name, what gives a task's rows; called when its turn comes.
    """
    results: Row = json.loads(file.read_text()) if file.is_file() else {"rows": {}}
    results["command"] = command
    for task in arguments.only or tasks:
        rows = tasks[task]()
        known = results["rows"].setdefault(task, {})
        for name in arguments.row or rows:
            if name not in rows:
                parser.error(f"{task} has no row {name!r}, but {', '.join(map(repr, rows))}")
            if name not in known or arguments.again:
                known[name] = rows[name]()
                print(task, name, known[name], flush=True)
                results["rows"][task] = {one: known[one] for one in rows if one in known}
                file.write_text(json.dumps(results, indent=1) + "\n")


def printed(arguments: argparse.Namespace, file: Path, table: Callable[[Row], str]) -> bool:
    """Prints the tables if that is all that is asked for; returns whether it was."""
    if arguments.table:
        print(table(json.loads(file.read_text())))
    return bool(arguments.table)
