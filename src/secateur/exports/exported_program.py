"""torch.export's program of a module, from which the other formats are made."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from inspect import Parameter, signature
from typing import Any

import torch
from torch.export import Dim, ExportedProgram

from secateur.errors import ExportError, first_line
from secateur.exports.program import Program


def exported_program(program: Program) -> ExportedProgram:
    """Returns torch's program, whose free axes may have any length.

    Raises:
        ExportError: torch can't trace the module, or an axis came out fixed.
    """
    shapes: list[Any] = [dict.fromkeys(free, Dim.DYNAMIC) for free in program.free]
    arguments = list(signature(program.module.forward).parameters.values())
    if arguments[-1].kind is Parameter.VAR_POSITIONAL:  # a cache: *past
        shapes = [*shapes[: len(arguments) - 1], tuple(shapes[len(arguments) - 1 :])]
    try:
        with quiet(), torch.no_grad():
            return torch.export.export(program.module, program.examples[0], dynamic_shapes=tuple(shapes))
    except Exception as error:  # whatever tracing raises
        raise ExportError(
            f"{program.name}: torch.export can't express this model: {type(error).__name__}: {first_line(error)}"
        ) from error


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps exporters from printing what they do."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
