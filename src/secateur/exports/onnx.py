"""ONNX: `NAME.onnx`, with the weights beside it in `NAME.onnx.data`."""

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


class Onnx(Runtime):
    """What ONNX Runtime reads, by torch.onnx."""

    name = "onnx"
    writes_with = ("onnx", "onnxscript")
    runs_with = ("onnxruntime",)
    quantizes_with = ("onnxruntime",)
    kinds = ("float32", "int8")

    def write(self, program: Program, folder: Path) -> None:
        traced = exported_program(program)
        try:
            with quiet():
                found: Any = torch.onnx.export(
                    traced,
                    dynamo=True,
                    verbose=False,
                    input_names=list(program.inputs),
                    output_names=list(program.outputs),
                )
        except Exception as error:  # whatever the exporter raises
            raise ExportError(f"{program.name}: torch.onnx can't express it: {first_line(error)}") from error
        import onnx_ir  # noqa: PLC0415 (comes with onnxscript)

        for value, free in zip(found.model.graph.inputs, program.free, strict=True):
            axes = [free.get(axis, size) for axis, size in enumerate(value.shape)]
            value.shape = onnx_ir.Shape([one if isinstance(one, str) else int(one) for one in axes])
        found.save(folder / f"{program.name}.onnx", external_data=True)

    def outputs(self, program: Program, folder: Path) -> list[Sequence[Tensor]]:
        import onnxruntime  # noqa: PLC0415 (an extra)

        session = onnxruntime.InferenceSession(folder / f"{program.name}.onnx", providers=["CPUExecutionProvider"])
        read = {one.name for one in session.get_inputs()}
        found: list[Sequence[Tensor]] = []
        for example in program.examples:
            fed = {name: tensor.numpy() for name, tensor in zip(program.inputs, example, strict=True) if name in read}
            found.append([torch.from_numpy(one) for one in session.run(list(program.outputs), fed)])
        return found

    def quantize(self, program: Program, folder: Path) -> int:
        from secateur.exports.onnx_int8 import to_int8  # noqa: PLC0415 (an extra)

        return to_int8(folder / f"{program.name}.onnx")
