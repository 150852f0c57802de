"""Files that are there only when they are whole and on the disk."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor


def save_tensors(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    """Writes a safetensors file.

    Raises:
        OSError: The disk is full, or can't be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = _partial(path)
    try:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, partial, metadata=metadata)
    except SafetensorError as error:
        raise as_os_error(error, path) from error
    _put(partial, path)


def save_text(text: str, path: Path) -> None:
    """Writes a text file.

    Raises:
        OSError: The disk is full, or can't be written.
    """
    partial = _partial(path)
    partial.write_text(text, encoding="utf-8")
    _put(partial, path)


def _partial(path: Path) -> Path:
    """Returns what a file is called until it is whole: a name of this process's own, as others may write the same."""
    return path.with_name(f"{path.name}.{os.getpid()}.partial")


def as_os_error(error: SafetensorError, path: Path) -> OSError:
    """Returns what the operating system said, which the writer of safetensors puts into a text."""
    full = "os error 28" in str(error) or "os error 122" in str(error)
    return OSError(errno.ENOSPC if full else errno.EIO, str(error), str(path))


def _put(partial: Path, path: Path) -> None:
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    partial.replace(path)
