"""The contract of an export's format."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar

from torch import Tensor

from secateur.errors import ExportError, UsageError
from secateur.exports.program import Program


class Runtime(ABC):
    """Writes programs for a runtime, and runs what it wrote.

    Attributes:
        name: The name on the command line.
        writes_with: Packages that writing takes.
        runs_with: Packages that running takes.
        quantizes_with: Packages that int8 takes, where `kinds` has it.
        kinds: What its products may be computed in, what is taken where nothing is said first.
    """

    name: ClassVar[str]
    writes_with: ClassVar[tuple[str, ...]] = ()
    runs_with: ClassVar[tuple[str, ...]] = ()
    quantizes_with: ClassVar[tuple[str, ...]] = ()
    kinds: ClassVar[tuple[str, ...]] = ("float32",)

    @abstractmethod
    def write(self, program: Program, folder: Path) -> None:
        """Writes a program's file, or files.

        Raises:
            ExportError: The format can't express it.
        """

    @abstractmethod
    def outputs(self, program: Program, folder: Path) -> list[Sequence[Tensor]]:
        """Returns what the runtime gives for each example."""

    def quantize(self, program: Program, folder: Path) -> int:
        """Makes a program's file one of int8 products, where `kinds` has them; returns how many matrices changed.

        Raises:
            ExportError: It can't be done, or a weight that was zero isn't any more.
        """
        raise ExportError(f"{self.name} has no int8 products.")

    def check_writer(self) -> None:
        """Raises UsageError if a package is missing that writing takes."""
        missing = [name for name in self.writes_with if find_spec(name) is None]
        if missing:
            raise UsageError(f"export --to {self.name} takes {' and '.join(missing)}: pip install 'secateur[export]'.")

    def check_quantizer(self) -> None:
        """Raises UsageError if a package is missing that int8 takes."""
        missing = [name for name in self.quantizes_with if find_spec(name) is None]
        if missing:
            raise UsageError(f"--type int8 is quantized by {' and '.join(missing)}: pip install 'secateur[export]'.")

    @property
    def missing_runtime(self) -> str | None:
        """The package that is missing to run what was written, if one is."""
        return next((name for name in self.runs_with if find_spec(name) is None), None)
