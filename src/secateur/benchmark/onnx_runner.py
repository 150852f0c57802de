"""Exports in ONNX Runtime."""

from __future__ import annotations

from pathlib import Path

import onnxruntime

from secateur.benchmark.named_runner import Ask, Axes, NamedRunner


class OnnxRunner(NamedRunner):
    """ONNX Runtime."""

    name = "onnxruntime"
    suffix = ".onnx"

    def opened(self, file: Path) -> tuple[Ask, Axes]:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.threads
        session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        outputs = [one.name for one in session.get_outputs()]
        axes = {one.name: list(one.shape) for one in session.get_inputs()}
        return lambda told: dict(zip(outputs, session.run(None, told), strict=True)), axes
