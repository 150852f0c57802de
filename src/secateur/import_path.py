"""The user's own functions, named by an import path: `module:function` or `path/to/file.py:function`."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from secateur.errors import UsageError, did_you_mean, first_line


def function_at(path: str, takes: str) -> Callable[..., Any]:
    """Returns the function that an import path names. The current directory can be imported from.

    Args:
        path: The import path.
        takes: The function's arguments, for the error.

    Raises:
        UsageError: The file, the module, or the function in it is missing or can't be used.
    """
    source, _, function = path.rpartition(":")
    if not source or not function:
        raise UsageError(f"'{path}' is no import path; write module:function or path/to/file.py:function.")
    with _current_directory():
        module = _from_file(Path(source)) if source.endswith(".py") else _from_module(source)
    found: Any = getattr(module, function, None)
    if found is None:
        known = [name for name, one in vars(module).items() if callable(one) and not name.startswith("_")]
        raise UsageError(f"{source} has no function '{function}'.{did_you_mean(function, known) if known else ''}")
    if not callable(found):
        raise UsageError(f"{path} is a {type(found).__name__}, not a function of {takes}.")
    checked: Callable[..., Any] = found
    return checked


def path_of(function: Callable[..., Any]) -> str:
    """Returns the import path of a function, by which a recipe can name it.

    Raises:
        UsageError: Its module doesn't have it under its own name, as of a lambda or a function inside of another.
    """
    module, name = getattr(function, "__module__", ""), getattr(function, "__qualname__", "")
    if getattr(sys.modules.get(module), name, None) is not function:
        raise UsageError(f"{name or function!r} can't be named in a recipe: write it as a function of a module.")
    return f"{module}:{name}"


@contextmanager
def _current_directory() -> Iterator[None]:
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        yield
    finally:
        sys.path.remove(here)


def _from_module(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = error.name or name
        if name == missing or name.startswith(f"{missing}."):
            raise UsageError(f"there is no module '{missing}', neither installed nor in {Path.cwd()}.") from error
        raise UsageError(f"the module '{name}' imports '{missing}', which isn't installed.") from error
    except (ImportError, SyntaxError, ValueError) as error:
        raise UsageError(f"the module '{name}' can't be imported: {first_line(error)}.") from error


def _from_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise UsageError(f"there is no file {path.resolve()}.")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (ImportError, SyntaxError) as error:
        raise UsageError(f"{path} can't be imported: {first_line(error)}.") from error
    return module
