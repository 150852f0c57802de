"""What all parts of a recipe share."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, get_args

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
            raise UsageError(explain(error, cls)) from error


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
    plain = message.removeprefix("Value error, ").removesuffix(".")
    return plain.replace("Input should be a valid tuple", "must be a list").replace("Input should be", "must be")


def explain(error: ValidationError, kind: type[Settings]) -> str:
    """Puts pydantic's findings into one line that names the fields.

    Args:
        error: What it found.
        kind: What was to be made.
    """
    parts = []
    for found in error.errors():
        where = _place(found["loc"]) or "the recipe"
        if found["type"] == "extra_forbidden":
            parts.append(f"{where} is not a known field{_nearest(found['loc'], kind)}")
        elif found["type"] == "missing":
            parts.append(f"{where} is missing")
        else:
            parts.append(f"{where}: {_reason(found['msg'])}, but got {found['input']!r}")
    return "; ".join(parts) + "."


def _place(where: Sequence[str | int]) -> str:
    """Returns where in a recipe something stands; stages are counted from 1, as reports count them."""
    if len(where) > 1 and where[0] == "stages" and isinstance(where[1], int):
        return ": ".join([f"stage {where[1] + 1}", *filter(None, [".".join(map(str, where[2:]))])])
    return ".".join(map(str, where))


def _nearest(where: Sequence[str | int], kind: type[Settings]) -> str:
    """Returns the field that an unknown one is nearest to, or all that there are, in brackets."""
    inner: type[Settings] | None = kind
    for part in where[:-1]:
        if isinstance(part, str) and inner is not None:
            field = inner.model_fields.get(part)
            inner = None if field is None else _settings_in(field.annotation)
    if inner is None:
        return ""
    near = difflib.get_close_matches(str(where[-1]), inner.model_fields, n=1)
    return f" (did you mean '{near[0]}'?)" if near else f" (known: {', '.join(inner.model_fields)})"


def _settings_in(annotation: Any) -> type[Settings] | None:
    """Returns the settings that a field holds."""
    if isinstance(annotation, type) and issubclass(annotation, Settings):
        return annotation
    return next((found for one in get_args(annotation) if (found := _settings_in(one)) is not None), None)
