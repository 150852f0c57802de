"""OpenVINO with int8 weights: its own quantizer (NNCF), and whether what was zero stayed zero.

Weights, those of embeddings too, are int8 with a scale per output; what they are multiplied with is up to OpenVINO,
which on processors makes 8 bits of it as it comes.
"""

from __future__ import annotations

import io
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import openvino

from secateur.errors import ExportError, first_line
from secateur.exports.exported_program import quiet


def to_int8(file: Path) -> int:
    """Quantizes an OpenVINO file in place; returns how many matrices became int8.

    Args:
        file: The `.xml` of the model in float32, its weights in a `.bin` beside it.

    Raises:
        ExportError: The quantizer fails, finds no matrix, or moved a weight that was zero.
    """
    import nncf  # noqa: PLC0415 (takes seconds)

    model: Any = openvino.Core().read_model(file)
    zeros = {name: data == 0 for name, data in _constants(model, real=True).items()}
    try:
        with quiet(), redirect_stdout(io.StringIO()):  # it draws a bar
            quantized: Any = nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_SYM)
    except Exception as error:  # whatever the quantizer raises
        raise ExportError(f"{file.name}: NNCF can't quantize it: {first_line(error)}") from error
    integers = {name: data for name, data in _constants(quantized, real=False).items() if name in zeros}
    if not integers:
        raise ExportError(f"{file.name}: there is no matrix that could become int8.")
    for name, data in integers.items():
        if data.dtype != np.int8 or bool((data[zeros[name]] != 0).any()):
            raise ExportError(f"{name}: a weight that was zero isn't any more; the mask would be lost.")
    scratch = file.with_name(f"int8-{file.name}")
    openvino.save_model(quantized, scratch, compress_to_fp16=False)
    del model, quantized  # they hold the old file open
    for one in (scratch, scratch.with_suffix(".bin")):
        one.replace(one.with_name(one.name.removeprefix("int8-")))
    return len(integers)


def _constants(model: Any, real: bool) -> dict[str, Any]:
    """Returns a model's constants of more than one axis by name: real numbers, or integers of 8 bits."""
    found = {}
    for one in model.get_ops():
        if one.get_type_name() == "Constant" and len(one.get_output_shape(0)) > 1:
            kind = one.get_element_type()
            if kind.is_real() if real else kind.get_type_name() in ("i8", "u8"):
                found[one.get_friendly_name()] = one.data
    return found
