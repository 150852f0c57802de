"""Rules of operations that move, part, join and lengthen axes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

from secateur.network.graph.labels import Axes, Count
from secateur.network.graph.places import where
from secateur.network.graph.values import Unfollowed, argument, position_of, union
from secateur.network.graph.walker import Edit, Walker, sized


def _given(walker: Walker, node: fx.Node, start: int = 1) -> tuple[list[Any], int | str | None]:
    """Returns the sizes that a node is given, and where they stand together; None where each is an argument.

    Args:
        walker: The walker.
        node: The node.
        start: The position of the first one.
    """
    name = next((one for one in ("shape", "size", "sizes", "dims", "repeats") if one in node.kwargs), None)
    if name is not None:
        return listed(walker, node.kwargs[name]), name
    some = node.args[start:]
    if len(some) > 0 and not isinstance(walker.value(some[0]), int):
        return listed(walker, some[0]), start
    return list(some), None


def listed(walker: Walker, given: Any) -> list[Any]:
    if isinstance(given, fx.Node):  # a size that was computed: what it comes from, axis by axis
        return list(walker.of(given) or [None] * len(walker.value(given)))
    if not isinstance(given, tuple | list):
        raise Unfollowed("is given no sizes")
    return list(given)


def _count(walker: Walker, size: Any) -> Count | None:
    """Returns what a size comes from, if it comes from units."""
    found = walker.axes[size] if isinstance(size, fx.Node) else size
    return found if isinstance(found, Count) else None


def checked(
    walker: Walker,
    node: fx.Node,
    axes: Axes,
    sizes: Sequence[Any],
    at: int | str | None,
    reason: str = "gives them a size that isn't computed from theirs",
    start: int = 1,
) -> Axes:
    """Notes which of the sizes that a node is given have to follow a cut, and freezes units whose sizes can't."""
    edited = list(sizes)
    for axis, (labels, size) in enumerate(zip(axes, sizes, strict=True)):
        count = _count(walker, size)
        if labels is None:
            walker.freeze(count, f"{where(node)} has their number as a size of something else")
        elif isinstance(size, int):
            edited[axis] = labels if size != -1 else size
        else:
            walker.found.sizes.append((count, labels, f"{where(node)} {reason}"))
    if at is None:
        for position, labels in enumerate(edited, start):
            if isinstance(labels, Tensor):
                walker.found.edits.append(Edit(node.name, position, labels))
    elif any(isinstance(one, Tensor) for one in edited):
        walker.found.edits.append(Edit(node.name, at, edited))
    return axes


@sized
def reshape(walker: Walker, node: fx.Node, value: Tensor) -> Axes:
    """Sizes that are constants follow; where units are parted over two axes, they go along one of them."""
    sizes, at = _given(walker, node)
    if any(isinstance(size, torch.dtype) for size in sizes):
        raise Unfollowed("reads its bytes as another type")
    if len(sizes) != value.ndim:
        raise Unfollowed("is given sizes in a way that isn't followed")
    axes = _parted(walker, node, value, sizes)
    return checked(walker, node, axes, sizes, at)


def _parted(walker: Walker, node: fx.Node, value: Tensor, sizes: Sequence[Any]) -> Axes:
    """Follows a reshape; where an axis is parted, units stay apart along one whose size is free to change."""
    axes, source = walker.of(node.args[0]), walker.value(node.args[0])
    counted = [axis for axis, size in enumerate(sizes) if _count(walker, size) is not None]
    rest = [axis for axis, size in enumerate(sizes) if isinstance(size, int) and size == -1]
    choice = walker.choices.get(node.name)
    keep = [*counted[::-1], *(rest if choice is None else range(choice, value.ndim))]
    reason = f"{where(node)} mixes units of two axes"
    found, choices = walker.found.labels.reshaped(axes, source.shape, value.shape, reason, keep)
    if choices and not choices & set(counted):
        left = [labels for axis in sorted(choices) if (labels := found[axis]) is not None]
        walker.found.parted[node.name] = (value.ndim, torch.cat(left))
    return found


def flattened(walker: Walker, node: fx.Node, value: Tensor) -> Axes:
    """Joins an axis of units with others: all places of a unit go."""
    axes, source = walker.of(node.args[0]), walker.value(node.args[0])
    reason = f"{where(node)} mixes units of two axes"
    return walker.found.labels.reshaped(axes, source.shape, value.shape, reason)[0]


@sized
def reshaped_as(walker: Walker, node: fx.Node, value: Tensor) -> Axes:
    """Takes the shape of another tensor."""
    sizes = [None if labels is None else Count(labels, exact=True) for labels in walker.of(node.args[1])]
    axes = _parted(walker, node, value, sizes)
    return checked(walker, node, axes, sizes, 1, "gives them the size of something else")


@sized
def unflattened(walker: Walker, node: fx.Node, value: Tensor) -> Axes:
    """Sizes that are constants follow; where units are parted over two axes, they go along one of them."""
    source = walker.value(node.args[0])
    if node.op == "call_module":
        module: Any = walker.fetch_attr(str(node.target))
        dim, given, at = module.dim, module.unflattened_size, None
    else:
        dim, given, at = (
            walker.dim(node, source.ndim, default=None),
            argument(node, 2, "sizes"),
            position_of(node, 2, "sizes"),
        )
    if not isinstance(given, tuple | list):
        raise Unfollowed("is given its sizes in a way that isn't followed")
    dim %= source.ndim
    behind = value.ndim - dim - len(given)
    sizes: list[Any] = [-1] * dim + list(given) + [-1] * behind  # the other axes are as they were
    axes = _parted(walker, node, value, [0] * dim + list(given) + [0] * behind)
    if at is None:
        if any(size != -1 and labels is not None for size, labels in zip(sizes, axes, strict=True)):
            raise Unfollowed("has its sizes as constants")
        return axes
    checked(walker, node, axes[dim : dim + len(given)], given, at)
    return axes


@sized
def expanded(walker: Walker, node: fx.Node, value: Tensor) -> Axes:
    """Sizes that are constants follow."""
    source, (sizes, at) = walker.value(node.args[0]), _given(walker, node)
    new = value.ndim - source.ndim
    axes: list[Tensor | None] = [None] * new + list(walker.of(node.args[0]))
    for axis in range(new, value.ndim):
        if source.shape[axis - new] != value.shape[axis]:
            walker.freeze(axes[axis], f"{where(node)} repeats the only one")
            axes[axis] = None
    return checked(walker, node, tuple(axes), sizes, at)


def created(start: int) -> Any:
    """Returns the rule of what makes a tensor whose places are all the same: they follow what they meet.

    Args:
        start: The position of the first size.
    """

    @sized
    def rule(walker: Walker, node: fx.Node, value: Tensor) -> Axes:
        """Makes a tensor whose places are all the same: they follow what they meet."""
        sizes, at = _given(walker, node, start)
        for one in node.all_input_nodes:
            if one not in sizes:
                walker.freeze(union(walker.axes[one]), f"{where(node)} computes with their number")
        axes: list[Tensor | None] = []
        for size in sizes:
            count = _count(walker, size)
            if isinstance(size, int) and size > 1:
                axes.append(walker.found.labels.fresh(size, loose=True))
            else:
                axes.append(count.labels if count is not None and count.exact else None)
        return checked(walker, node, tuple(axes), sizes, at, start=start)

    return rule


def repeated(walker: Walker, node: fx.Node, value: Tensor) -> Axes:
    """A unit's copies go with it."""
    times, _ = _given(walker, node)
    axes = list(walker.of(node.args[0]))
    axes = [None] * (value.ndim - len(axes)) + axes
    times = [1] * (value.ndim - len(times)) + times
    for axis, (labels, number) in enumerate(zip(axes, times, strict=True)):
        if labels is not None:
            if not isinstance(number, int):
                raise Unfollowed("repeats units a computed number of times")
            axes[axis] = labels.repeat(number)
    return tuple(axes)


def interleaved(walker: Walker, node: fx.Node, value: Tensor) -> Axes:
    """A unit's copies go with it."""
    axes = list(walker.of(node.args[0]))
    times, dim = argument(node, 1, "repeats"), walker.dim(node, len(axes), 2, default=None)
    if not isinstance(times, int):
        raise Unfollowed("repeats places by computed numbers")
    labels = axes[dim]
    axes[dim] = None if labels is None else labels.repeat_interleave(times)
    return tuple(axes)


def moved(walker: Walker, node: fx.Node, value: Tensor) -> Axes:
    """Moves axes."""
    axes = walker.of(node.args[0])
    if len(node.all_input_nodes) > 1:
        raise Unfollowed("moves axes by computed numbers")
    probe = torch.empty([2 + axis for axis in range(len(axes))], device="meta")
    operation: Any = getattr(probe, node.target) if isinstance(node.target, str) else node.target
    rest = node.args[1:]
    after = operation(*rest, **node.kwargs) if isinstance(node.target, str) else operation(probe, *rest, **node.kwargs)
    return tuple(axes[size - 2] for size in after.shape)


def attribute(walker: Walker, node: fx.Node, value: Any) -> Any:
    """`.T`, `.mT`, `.H`, `.mH` move axes, `.data` is the same."""
    if node.args[1] in ("T", "mT", "H", "mH"):
        return moved(walker, node, value)
    if node.args[1] == "data":
        return walker.of(node.args[0])
    raise Unfollowed("isn't an operation that can be followed")


def squeezed(walker: Walker, node: fx.Node, value: Tensor) -> Axes:
    """Takes other axes away; units along an axis that it may take away stay."""
    axes, source = walker.of(node.args[0]), walker.value(node.args[0])
    dims = walker.dims(node, source.ndim)
    for axis in dims:
        walker.freeze(axes[axis], f"{where(node)} takes their axis away when one is left")
    return tuple(labels for axis, labels in enumerate(axes) if axis not in dims or source.shape[axis] != 1)


def unsqueezed(walker: Walker, node: fx.Node, value: Tensor) -> Axes:
    """Adds an axis."""
    axes = list(walker.of(node.args[0]))
    axes.insert(walker.dim(node, value.ndim), None)
    return tuple(axes)


def flipped(walker: Walker, node: fx.Node, value: Tensor) -> Axes:
    """Turns the order of units around."""
    axes = list(walker.of(node.args[0]))
    dims: Any = node.kwargs.get("dims", node.args[1:])
    dims = dims[0] if len(dims) == 1 and isinstance(dims[0], tuple | list) else dims
    for axis in dims:
        labels = axes[axis]
        axes[axis] = None if labels is None else labels.flip(0)
    return tuple(axes)


def padded(walker: Walker, node: fx.Node, value: Tensor) -> Axes:
    """Zeros beside units are units of their own, until something is added to them; other pads have units stay."""
    axes = list(walker.of(node.args[0]))
    if node.op == "call_module":
        module: Any = walker.fetch_attr(str(node.target))
        pads, plain = list(module.padding), False
    else:
        pads = argument(node, 1, "pad")
        zero = argument(node, 3, "value", None) in (None, 0, 0.0)
        plain = zero and argument(node, 2, "mode", "constant") == "constant"
    if not isinstance(pads, tuple | list):
        raise Unfollowed("pads by computed numbers")
    edited: list[Any] = list(pads)
    for place in range(0, len(pads), 2):
        axis = len(axes) - 1 - place // 2
        labels, (left, right) = axes[axis], pads[place : place + 2]
        if labels is None or (left, right) == (0, 0):
            continue
        if not (plain and all(isinstance(one, int) and one >= 0 for one in (left, right))):
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
    """Channels that become one stay or go together."""
    axes, source = walker.of(node.args[0]), walker.value(node.args[0])
    channels = value.ndim - 3
    labels = axes[channels]
    walker.freeze(axes[channels + 1 :], f"{where(node)} moves over an axis of units")
    if labels is not None and source.shape[channels] > value.shape[channels]:
        labels = walker.found.labels.tie(labels.reshape(value.shape[channels], -1), 1)
    elif labels is not None:
        labels = labels.repeat_interleave(value.shape[channels] // source.shape[channels])
    return (*axes[:channels], labels, None, None)
