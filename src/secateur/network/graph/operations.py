"""Rules of operations that leave the axes as they are, meet at them, or take some together."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from secateur.network.graph.labels import Axes
from secateur.network.graph.tracing import where
from secateur.network.graph.walker import Walker, dims_of, nothing


def same(walker: Walker, node: fx.Node, value: Any) -> Any:
    return walker.of(node.args[0]) if isinstance(value, Tensor) else nothing(value)


def constant(walker: Walker, node: fx.Node, value: Any) -> Any:
    return nothing(value)


def pooled(walker: Walker, node: fx.Node, value: Any) -> Any:
    """Works on the last axes, place by place of the others."""
    axes = walker.of(node.args[0])
    first = value[0] if isinstance(value, tuple) else value
    moved = [axis for axis in range(len(axes)) if axis >= 2 or (len(axes) < 4 and axis == len(axes) - 1)]
    for axis in moved:
        walker.freeze(axes[axis], f"{where(node)} pools over units")
    kept = tuple(None if axis in moved else axes[axis] for axis in range(first.ndim))
    return (kept, kept) if isinstance(value, tuple) else kept


def reduced(walker: Walker, node: fx.Node, value: Any) -> Any:
    axes = walker.of(node.args[0])
    first = value[0] if isinstance(value, tuple) else value
    gone = dims_of(node, len(axes))
    for axis in gone:
        walker.freeze(axes[axis], f"{where(node)} takes units together")
    keep = first.ndim == len(axes)
    left = tuple(None if axis in gone else labels for axis, labels in enumerate(axes) if keep or axis not in gone)
    return (left, left) if isinstance(value, tuple) else left


def over(walker: Walker, node: fx.Node, value: Tensor) -> Axes:
    """A softmax or a normalisation over some axes, whose shape stays."""
    axes: Axes = walker.of(node.args[0])
    module = walker.fetch_attr(str(node.target)) if node.op == "call_module" else None
    if module is not None:
        dims = [] if module.dim is None else [module.dim % len(axes)]
    else:
        dims = dims_of(node, len(axes))
    for axis in dims:
        walker.freeze(axes[axis], f"{where(node)} takes units together")
    return axes


def binary(walker: Walker, node: fx.Node, value: Any) -> Any:
    """Places that meet are one unit; a parameter of the model's own follows what it meets."""
    if not isinstance(value, Tensor):
        return None
    sides = [argument for argument in node.args[:2] if isinstance(argument, fx.Node)]
    tensors = [(side, walker.env[side]) for side in sides if isinstance(walker.env[side], Tensor)]
    if len(tensors) == 1:
        return walker.of(tensors[0][0])
    reason = f"{where(node)} joins it with what can't be cut"
    found: list[Tensor | None] = []
    for axis in range(-value.ndim, 0):
        size = value.shape[axis]
        wide = [(side, one) for side, one in tensors if one.ndim >= -axis and one.shape[axis] == size]
        some = [(side, one, walker.axes[side][one.ndim + axis]) for side, one in wide]
        known = [labels for _, _, labels in some if labels is not None]
        if not known or size == 1:
            found.append(known[0] if known else None)
            continue
        first = known[0]
        for side, one, labels in some:
            if labels is None and side.op == "get_attr":
                walker.place(str(side.target), one.ndim + axis, first, "follows")
            elif labels is None or labels is not first:
                other = torch.zeros(size, dtype=torch.int64) if labels is None else labels
                walker.found.labels.join(first, other, reason)
        found.append(first)
    return tuple(found)
