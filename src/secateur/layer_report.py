"""What became of a layer: counted from its weights as they are."""

from __future__ import annotations

import time

from secateur.network.network import Layer
from secateur.result import LayerReport
from secateur.solvers import Step


def report_of(
    layer: Layer, zeros_before: int, start: float, steps: tuple[Step, ...] = (), threshold: float | None = None
) -> LayerReport:
    """Returns the report of a layer whose new weights stand.

    Args:
        layer: The layer.
        zeros_before: Weights of it that were zero before.
        start: When work on it began, by `time.perf_counter`.
        steps: What each solver did; without, no errors are told.
        threshold: The threshold that scores were held against, where one was asked for.
    """
    alive = layer.matrix() != 0
    rows, columns = layer.shape
    return LayerReport(
        name=layer.name,
        rows=rows,
        columns=columns,
        zeros_before=zeros_before,
        zeros=layer.zeros(),
        dead_rows=rows - int(alive.any(1).sum()),
        dead_columns=columns - int(alive.any(0).sum()),
        error_masked=steps[0].error_before if steps else None,
        error=steps[-1].error if steps else None,
        damping=max((step.damping for step in steps if step.damping is not None), default=None),
        threshold=threshold,
        seconds=time.perf_counter() - start,
        steps=steps,
    )


def layer_kind(name: str) -> str:
    """Returns a layer's name with its numbers as stars: `model.layers.*.self_attn.q_proj`."""
    return ".".join("*" if part.isdigit() else part for part in name.split("."))
