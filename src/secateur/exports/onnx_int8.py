"""ONNX with int8 products: ONNX Runtime's own dynamic quantizer, and whether what was zero stayed zero.

Weights are int8 with a scale per output; activations become 8 bits when they come, with a scale of their own each time.
"""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic

from secateur.errors import ExportError, first_line

PRODUCTS = ["MatMul", "Gemm"]


def to_int8(file: Path) -> int:
    """Quantizes an ONNX file in place; returns how many matrices became int8.

    Args:
        file: The model in float32; its weights may lie beside it.

    Raises:
        ExportError: The quantizer fails, finds no matrix, or moved a weight that was zero.
    """
    scratch = file.with_name(f"int8-{file.name}")
    before = logging.root.level
    logging.root.setLevel(logging.ERROR)  # it recommends its own preprocessing each time
    try:
        quantize_dynamic(
            file,
            scratch,
            op_types_to_quantize=PRODUCTS,
            per_channel=True,
            weight_type=QuantType.QInt8,
            use_external_data_format=True,
        )
    except Exception as error:  # whatever the quantizer raises
        raise ExportError(f"{file.name}: ONNX Runtime can't quantize it: {first_line(error)}") from error
    finally:
        logging.root.setLevel(before)
    model = onnx.load(scratch)
    for path in file.parent.glob(f"{scratch.name}*"):
        path.unlink()
    matrices = _check_zeros(onnx.load(file), model)
    if matrices == 0:
        raise ExportError(f"{file.name}: there is no matrix product with weights that could become int8.")
    data = f"{file.name}.data"
    (file.parent / data).unlink(missing_ok=True)
    onnx.save(model, file, save_as_external_data=True, all_tensors_to_one_file=True, location=data)
    return matrices


def _check_zeros(plain: onnx.ModelProto, quantized: onnx.ModelProto) -> int:
    """Raises ExportError if a weight that was zero isn't; returns the number of matrices that are integers."""
    integers = {one.name: one for one in quantized.graph.initializer}
    count = 0
    for one in plain.graph.initializer:
        if (found := integers.get(f"{one.name}_quantized")) is None:
            continue
        count += 1
        zero = numpy_helper.to_array(integers[f"{one.name}_zero_point"])
        lost = (numpy_helper.to_array(found) != zero) & (numpy_helper.to_array(one) == 0)
        if bool(np.any(zero != 0)) or bool(lost.any()):
            raise ExportError(f"{one.name}: a weight that was zero isn't any more; the mask would be lost.")
    return count
