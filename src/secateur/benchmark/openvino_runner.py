"""Exports in OpenVINO."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import openvino

from secateur.benchmark.named_runner import Ask, Axes, NamedRunner

DTYPES = {"f32": "float32", "bf16": "bfloat16", "f16": "float16"}  # as OpenVINO calls them


class OpenVinoRunner(NamedRunner):
    """OpenVINO, in the precision that it chooses by itself, which `dtype` tells: bf16 where the processor has it."""

    name = "openvino"
    suffix = ".xml"

    def opened(self, file: Path) -> tuple[Ask, Axes]:
        settings = {"INFERENCE_NUM_THREADS": self.threads, "PERFORMANCE_HINT": "LATENCY"}
        compiled = openvino.Core().compile_model(file, "CPU", settings)
        chosen = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
        self.dtype = DTYPES.get(chosen, chosen)
        names = [one.any_name for one in compiled.outputs]
        axes = {
            one.any_name: [axis.get_length() if axis.is_static else None for axis in one.partial_shape]
            for one in compiled.inputs
        }

        def ask(told: dict[str, Any]) -> dict[str, Any]:
            found = compiled(told, share_outputs=False)
            return {name: found[name] for name in names}

        return ask, axes
