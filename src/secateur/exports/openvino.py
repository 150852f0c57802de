"""OpenVINO: `NAME.xml` and `NAME.bin`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from secateur.errors import ExportError, first_line
from secateur.exports.exported_program import exported_program, quiet
from secateur.exports.program import Program
from secateur.exports.runtime import Runtime


class OpenVino(Runtime):
    """What OpenVINO reads, by its own converter."""

    name = "openvino"
    writes_with = ("openvino",)
    runs_with = ("openvino",)
    quantizes_with = ("openvino", "nncf")
    kinds = ("float32", "int8")

    def write(self, program: Program, folder: Path) -> None:
        import openvino  # noqa: PLC0415 (an extra)

        traced = exported_program(program)
        try:
            with quiet():
                model: Any = openvino.convert_model(traced)
        except Exception as error:  # whatever the converter raises
            raise ExportError(f"{program.name}: openvino can't express it: {first_line(error)}") from error
        for ports, names in ((model.inputs, program.inputs), (model.outputs, program.outputs)):
            for port, name in zip(ports, names, strict=True):
                port.get_tensor().set_names({name})
        shapes = {
            name: openvino.PartialShape([-1 if axis in free else size for axis, size in enumerate(example.shape)])
            for name, free, example in zip(program.inputs, program.free, program.examples[0], strict=True)
        }
        model.reshape(shapes)  # heads and widths are known; only the free axes stay open
        openvino.save_model(model, folder / f"{program.name}.xml", compress_to_fp16=False)

    def outputs(self, program: Program, folder: Path) -> list[Sequence[Tensor]]:
        import openvino  # noqa: PLC0415 (an extra)

        exact = {"INFERENCE_PRECISION_HINT": "f32"}  # by itself it computes in bf16 where the processor does
        compiled = openvino.Core().compile_model(folder / f"{program.name}.xml", "CPU", exact)
        found: list[Sequence[Tensor]] = []
        for example in program.examples:
            fed = dict(zip(program.inputs, (tensor.numpy() for tensor in example), strict=True))
            given = compiled(fed)
            found.append([torch.from_numpy(given[name].copy()) for name in program.outputs])
        return found

    def quantize(self, program: Program, folder: Path) -> int:
        from secateur.exports.openvino_int8 import to_int8  # noqa: PLC0415 (an extra)

        return to_int8(folder / f"{program.name}.xml")
