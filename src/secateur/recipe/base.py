"""What all parts of a recipe share."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, ValidationError

from secateur.errors import UsageError

if TYPE_CHECKING:
    from typing_extensions import Self

_SIZE = re.compile(r"([\d.]+)\s*(k|m|g|t|)(i?)b?", re.IGNORECASE)


def bytes_of(text: str) -> int:
    """Returns the bytes that `500MB`, `2GiB` or `1000000` stand for.

    Raises:
        UsageError: It isn't a size.
    """
    found = _SIZE.fullmatch(text.strip())
    try:
        number = float(found[1]) if found else -1.0
    except ValueError:
        number = -1.0
    if found is None or number < 0:
        raise UsageError(f"'{text}' is not a size; write 500MB, 2GB or a number of bytes.")
    return int(number * (1024 if found[3] else 1000) ** " kmgt".index(found[2].lower() or " "))


def listed(names: Sequence[str]) -> str:
    """Returns options as a list in words: `--a, --b and --c`."""
    options = ["--" + name.replace("_", "-") for name in names]
    return " and ".join([", ".join(options[:-1]), options[-1]] if len(options) > 1 else options)


class Settings(BaseModel):
    """Unknown fields are errors; an option that nobody reads would be worse."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @classmethod
    def build(cls, data: object) -> Self:
        """Makes settings from plain data.

        Raises:
            UsageError: A field is unknown, missing or out of range; the message names it.
        """
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            raise UsageError(explain(error)) from error


def changed(settings: Settings) -> set[str]:
    """Returns the fields that differ from their defaults."""
    fields = type(settings).model_fields
    return {
        name
        for name, field in fields.items()
        if getattr(settings, name) != field.get_default(call_default_factory=True)
    }


def refuse(settings: Settings, name: str, fields: Sequence[str]) -> None:
    """Raises UsageError if a field differs from its default that says nothing of images."""
    for field in fields:
        if field in changed(settings):
            raise UsageError(f"{name}: {field} says nothing of images; leave it out.")


def _reason(message: str) -> str:
    return message.removeprefix("Value error, ").removesuffix(".")


def explain(error: ValidationError) -> str:
    """Puts pydantic's findings into one line that names the fields."""
    parts = []
    for found in error.errors():
        where = ".".join(str(part) for part in found["loc"]) or "the recipe"
        if found["type"] == "extra_forbidden":
            parts.append(f"{where} is not a known field")
        elif found["type"] == "missing":
            parts.append(f"{where} is missing")
        else:
            parts.append(f"{where}: {_reason(found['msg'])}, but got {found['input']!r}")
    return "; ".join(parts) + "."
