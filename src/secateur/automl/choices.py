"""Choices left open in plain data: what a search may put in the place of a value.

    {choice: [wanda, l1, {…}]}            one of several values, which may hold choices of their own
    {int: [2, 8]}, {int: [16, 256], log: true}
    {float: [1e-5, 1e-3], log: true}

A choice inside of a value that wasn't chosen isn't made: spaces may be conditional.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from secateur.errors import UsageError

if TYPE_CHECKING:
    import optuna

KINDS = ("choice", "int", "float")


def is_choice(data: Any) -> bool:
    """Whether a value is left open."""
    return isinstance(data, dict) and any(kind in data for kind in KINDS) and set(data) <= {*KINDS, "log"}


def has_choices(data: Any) -> bool:
    """Whether plain data leaves anything open."""
    inside = data.values() if isinstance(data, dict) else data if isinstance(data, list) else ()
    return is_choice(data) or any(has_choices(one) for one in inside)


def chosen(data: Any, trial: optuna.trial.BaseTrial, path: str = "") -> Any:
    """Returns the data with all choices made by a trial, whose parameters are named by their paths.

    Raises:
        UsageError: A choice is malformed.
    """
    if is_choice(data):
        return _made(data, trial, path)
    if isinstance(data, dict):
        return {key: chosen(value, trial, f"{path}.{key}" if path else str(key)) for key, value in data.items()}
    if isinstance(data, list):
        return [chosen(value, trial, f"{path}.{number}") for number, value in enumerate(data)]
    return data


def _made(data: dict[str, Any], trial: optuna.trial.BaseTrial, path: str) -> Any:
    kinds = [kind for kind in KINDS if kind in data]
    if len(kinds) != 1:
        raise UsageError(f"{path}: a choice is one of {', '.join(KINDS)}, not {' and '.join(kinds)}.")
    (kind,), log = kinds, bool(data.get("log", False))
    given = data[kind]
    if kind == "choice":
        if not isinstance(given, list) or len(given) < 2 or "log" in data:
            raise UsageError(f"{path}: 'choice' takes a list of two or more values, and no 'log'.")
        names = [
            value if isinstance(value, str | int | float | bool | None) else f"#{n}" for n, value in enumerate(given)
        ]
        if len(set(map(repr, names))) < len(names):
            raise UsageError(f"{path}: 'choice' names a value twice.")
        name = trial.suggest_categorical(path, names)
        return chosen(given[names.index(name)], trial, f"{path}.{name}")
    whole = kind == "int"
    numbers = isinstance(given, list) and len(given) == 2
    if not numbers or not all(isinstance(one, int if whole else int | float) for one in given) or given[0] >= given[1]:
        raise UsageError(f"{path}: '{kind}' takes the least and the largest value, such as [1, 8], but got {given!r}.")
    if log and given[0] <= 0:
        raise UsageError(f"{path}: 'log' needs numbers above 0, but got {given!r}.")
    low, high = given
    return trial.suggest_int(path, low, high, log=log) if whole else trial.suggest_float(path, low, high, log=log)
