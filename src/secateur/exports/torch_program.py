"""torch.export programs: `NAME.pt2`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from secateur.exports.exported_program import exported_program
from secateur.exports.program import Program
from secateur.exports.runtime import Runtime


class TorchProgram(Runtime):
    """What `torch.export.load` reads."""

    name = "torch"

    def write(self, program: Program, folder: Path) -> None:
        torch.export.save(exported_program(program), folder / f"{program.name}.pt2")

    def outputs(self, program: Program, folder: Path) -> list[Sequence[Tensor]]:
        loaded = torch.export.load(folder / f"{program.name}.pt2").module()
        with torch.inference_mode():
            return [loaded(*example) for example in program.examples]
