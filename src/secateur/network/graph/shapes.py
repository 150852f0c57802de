"""Rules of operations that move, part, join and lengthen axes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from secateur.network.graph.labels import Axes
from secateur.network.graph.tracing import where
from secateur.network.graph.walker import Edit, Walker, argument, dims_of, nothing, position_of


def reshape(walker: Walker, node: fx.Node, value: Tensor) -> Axes:
    axes, source = walker.of(node.args[0]), walker.value(node.args[0])
    reason = f"{where(node)} mixes units of two axes"
    found = walker.found.labels.reshaped(axes, source.shape, value.shape, reason)
    if node.op == "call_module" or node.target in (torch.flatten, "flatten"):
        return found
    several = len(node.args) == 2 and isinstance(node.args[1], tuple | list)
    shape = node.args[1] if several else node.args[1:]
    assert isinstance(shape, tuple | list)
    if len(shape) != len(found):  # unflatten
        return found
    for position, (size, labels) in enumerate(zip(shape, found, strict=True)):
        if isinstance(size, fx.Node):
            _counts(walker, node, walker.axes[size], labels)
        if isinstance(size, int) and size != -1 and labels is not None:
            if several:
                shape = [labels if place == position else one for place, one in enumerate(shape)]
            else:
                walker.found.edits.append(Edit(node.name, position + 1, labels))
    if several and any(isinstance(size, Tensor) for size in shape):
        walker.found.edits.append(Edit(node.name, 1, list(shape)))
    return found


def _counts(walker: Walker, node: fx.Node, counted: Tensor | None, labels: Tensor | None) -> None:
    """Has an axis whose size is that of another one lose places along with it."""
    if counted is not None and labels is not counted:
        other = torch.zeros_like(counted) if labels is None else labels
        walker.found.labels.join(counted, other, f"{where(node)} counts units for an axis that can't be cut")


def unflatten(walker: Walker, node: fx.Node, value: Tensor) -> Axes:
    axes, source = walker.of(node.args[0]), walker.value(node.args[0])
    found = walker.found.labels.reshaped(axes, source.shape, value.shape, f"{where(node)} mixes units of two axes")
    changed = [
        labels for labels, before in zip(found, axes, strict=False) if labels is not before and labels is not None
    ]
    for labels in changed:
        walker.freeze(labels, f"{where(node)} has its sizes as constants")
    return found


def permuted(walker: Walker, node: fx.Node, value: Tensor) -> Axes:
    axes = walker.of(node.args[0])
    order: Any = node.args[1] if len(node.args) == 2 and isinstance(node.args[1], tuple | list) else node.args[1:]
    order = node.kwargs.get("dims", order)
    return tuple(axes[axis % len(axes)] for axis in order)


def transposed(walker: Walker, node: fx.Node, value: Tensor) -> Axes:
    axes = list(walker.of(node.args[0]))
    one, two = (argument(node, 1, "dim0"), argument(node, 2, "dim1")) if len(axes) > 1 else (0, 0)
    if node.target in ("t", torch.t):
        one, two = 0, len(axes) - 1
    axes[one], axes[two] = axes[two], axes[one]
    return tuple(axes)


def squeezed(walker: Walker, node: fx.Node, value: Tensor) -> Axes:
    axes, source = walker.of(node.args[0]), walker.value(node.args[0])
    dims = dims_of(node, source.ndim)
    gone = [axis for axis in dims if source.shape[axis] == 1]
    for axis in gone:
        walker.freeze(axes[axis], f"{where(node)} takes an axis of one unit away")
    return tuple(labels for axis, labels in enumerate(axes) if axis not in gone)


def unsqueezed(walker: Walker, node: fx.Node, value: Tensor) -> Axes:
    axes = list(walker.of(node.args[0]))
    axes.insert(argument(node, 1, "dim") % value.ndim, None)
    return tuple(axes)


def expanded(walker: Walker, node: fx.Node, value: Tensor) -> Axes:
    axes = walker.of(node.args[0])
    source = walker.value(node.args[0])
    padded = [None] * (value.ndim - len(axes)) + list(axes)
    sizes = node.args[1] if len(node.args) == 2 and isinstance(node.args[1], tuple | list) else node.args[1:]
    for axis, labels in enumerate(padded):
        size = sizes[axis] if axis < len(sizes) else -1
        constant = isinstance(size, int) and size != -1
        if labels is not None and (constant or value.shape[axis] != source.shape[axis - value.ndim]):
            walker.freeze(labels, f"{where(node)} has its size as a constant")
    return tuple(padded)


def flipped(walker: Walker, node: fx.Node, value: Tensor) -> Axes:
    axes = list(walker.of(node.args[0]))
    dims = argument(node, 1, "dims")
    for axis in [dims] if isinstance(dims, int) else dims:
        labels = axes[axis]
        axes[axis] = None if labels is None else labels.flip(0)
    return tuple(axes)


def padded(walker: Walker, node: fx.Node, value: Tensor) -> Axes:
    """Zeros beside units are units of their own, until something is added to them."""
    axes = list(walker.of(node.args[0]))
    if node.op == "call_module":
        module = walker.fetch_attr(str(node.target))
        pads, mode = list(module.padding), "constant"
        constant = getattr(module, "value", 0.0) == 0
    else:
        pads, mode = argument(node, 1, "pad"), argument(node, 2, "mode", "constant")
        constant = argument(node, 3, "value", None) in (None, 0, 0.0)
    edited: list[Any] = list(pads)
    for place in range(0, len(pads), 2):
        axis = len(axes) - 1 - place // 2
        labels, (left, right) = axes[axis], pads[place : place + 2]
        if labels is None or (left, right) == (0, 0):
            continue
        literal = isinstance(left, int) and isinstance(right, int) and left >= 0 and right >= 0
        if mode != "constant" or not constant or not literal or node.op == "call_module":
            walker.freeze(labels, f"{where(node)} pads units in a way that isn't followed")
            axes[axis] = None
            continue
        before, after = walker.found.labels.fresh(left), walker.found.labels.fresh(right)
        axes[axis] = torch.cat([before, labels, after])
        edited[place : place + 2] = [before, after]
    if any(isinstance(one, Tensor) for one in edited):
        walker.found.edits.append(Edit(node.name, position_of(node, 1, "pad"), edited))
    return tuple(axes)


def shuffled(walker: Walker, node: fx.Node, value: Tensor) -> Axes:
    """Pixel shuffle: the channels that become neighbours stay or go together."""
    axes, source = walker.of(node.args[0]), walker.value(node.args[0])
    channels = value.ndim - 3
    labels = axes[channels]
    if labels is None:
        return axes  # type: ignore[no-any-return]
    if source.shape[channels] > value.shape[channels]:
        first = walker.found.labels.tie(labels.reshape(value.shape[channels], -1), 1)
    else:
        first = labels.repeat_interleave(value.shape[channels] // source.shape[channels])
    return (*axes[:channels], first, *axes[channels + 1 :])


def attribute(walker: Walker, node: fx.Node, value: Any) -> Any:
    if node.args[1] in ("T", "mT") and isinstance(value, Tensor):
        axes = list(walker.of(node.args[0]))
        axes[-1], axes[-2] = axes[-2], axes[-1]
        return tuple(axes)
    return walker.of(node.args[0]) if node.args[1] == "shape" else nothing(value)


def size(walker: Walker, node: fx.Node, value: Any) -> Any:
    """A size has the labels of the places that it counts."""
    axes = walker.of(node.args[0])
    dim = argument(node, 1, "dim")
    return axes if dim is None else axes[dim]
