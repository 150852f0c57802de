"""Tables of text and label: what sequence classifiers are trained and measured on."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from secateur.errors import CalibrationError

DELIMITERS = {".tsv": "\t", ".csv": ","}
TEXTS = ("text", "sentence")  # what the column of texts may be called
LABEL = "label"


@dataclass(frozen=True)
class Table:
    """Texts, each of one class.

    Attributes:
        texts: The texts.
        classes: (rows,) int64
        names: The classes' names, in the order of their numbers.
        source: Where they come from, for people.
    """

    texts: tuple[str, ...]
    classes: Tensor
    names: tuple[str, ...]
    source: str

    def __len__(self) -> int:
        return len(self.texts)

    def batch(self, places: Sequence[int], tokenizer: Any, length: int) -> dict[str, Tensor]:
        """Returns rows as a classifier takes them: token ids, cut at `length` and padded, their mask, and `labels`."""
        texts = [self.texts[place] for place in places]
        found = tokenizer(texts, truncation=True, max_length=length, padding=True, return_tensors="pt")
        return {**found, "labels": self.classes[list(places)]}


def is_table(data: str | None) -> bool:
    """Whether a file is to have labels beside its texts: a .tsv or .csv, a .jsonl whose objects have a label."""
    path = Path(data or "").expanduser()
    if path.suffix not in (*DELIMITERS, ".jsonl") or not path.is_file():
        return False
    if path.suffix in DELIMITERS:
        return True
    with path.open(encoding="utf-8", errors="replace") as file:
        first = next((line for line in file if line.strip()), "")
    try:
        row = json.loads(first)
    except json.JSONDecodeError:
        return False
    return isinstance(row, dict) and LABEL in row


def read_table(data: str, rows: int | None, names: Sequence[str] | None) -> Table:
    """Reads a table of text (`text` or `sentence`) and `label`.

    Args:
        data: A .tsv, .csv or .jsonl file.
        rows: How many at most; None takes all.
        names: The classes that labels are among, by name or number; None takes those that there are, in sorted order.

    Raises:
        CalibrationError: The file is missing, has other columns, or a label that is none of the classes.
    """
    path = Path(data).expanduser()
    texts, labels = [], []
    try:
        for number, row in enumerate(islice(_rows(path), rows), start=1):
            if None in row:
                raise CalibrationError(
                    f"{data}, row {number} has more fields than the header: put texts with a comma in quotes."
                )
            text = next((row[name] for name in TEXTS if isinstance(row.get(name), str)), None)
            label = row.get(LABEL)
            if text is None or not isinstance(label, str | int):
                has = ", ".join(map(str, row)) or "nothing"
                raise CalibrationError(f"{data}, row {number}: a table has columns text and label; this has {has}.")
            if str(label).strip() == "":
                raise CalibrationError(f"{data}, row {number} has no label.")
            texts.append(text)
            labels.append(str(label))
    except (OSError, UnicodeDecodeError, csv.Error, json.JSONDecodeError) as error:
        raise CalibrationError(f"{data} can't be read as a table: {error}.") from error
    if not texts:
        raise CalibrationError(f"{data} has no rows.")
    if names is None and any(_broken(label) for label in labels):
        broken = next(label for label in labels if _broken(label))
        raise CalibrationError(f"{data} has the label {broken}: classes are names or whole numbers.")
    known = tuple(names) if names is not None else tuple(sorted(set(labels)))
    numbers = {str(number): number for number in range(len(known))} | {name: at for at, name in enumerate(known)}
    strange = next((label for label in labels if label not in numbers), None)
    if strange is not None:
        raise CalibrationError(f"{data} has the label {strange!r}, which is none of {', '.join(known)}.")
    if len(known) < 2:
        raise CalibrationError(f"{data} has the label {known[0]!r} only: there is nothing to tell apart.")
    return Table(tuple(texts), torch.tensor([numbers[label] for label in labels]), known, data)


def _broken(label: str) -> bool:
    """Whether a label is a number that isn't whole."""
    try:
        return not float(label).is_integer()
    except (ValueError, OverflowError):
        return False


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8", newline="") as file:
        if path.suffix in DELIMITERS:
            quoted: Any = csv.QUOTE_NONE if path.suffix == ".tsv" else csv.QUOTE_MINIMAL
            yield from csv.DictReader(file, delimiter=DELIMITERS[path.suffix], quoting=quoted)
            return
        for line in file:
            if line.strip():
                row = json.loads(line)
                yield row if isinstance(row, dict) else {}
