"""Rules of operations that put tensors side by side or take parts of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

from secateur.network.graph.labels import Axes
from secateur.network.graph.places import where
from secateur.network.graph.values import Unfollowed, argument, nothing, position_of, union
from secateur.network.graph.walker import MEETS, Edit, Walker, sized


def cat(walker: Walker, node: fx.Node, value: Tensor) -> Axes:
    """Puts units beside each other."""
    given: Any = node.args[0]
    parts, every = walker.value(given), walker.of(given)
    dim = walker.dim(node, value.ndim)
    found: list[Tensor | None] = []
    for axis in range(value.ndim):
        some = [axes[axis] for axes in every]
        if axis == dim:
            zeros = [torch.zeros(part.shape[dim], dtype=torch.int64) for part in parts]
            both = [empty if own is None else own for own, empty in zip(some, zeros, strict=True)]
            found.append(None if all(labels is None for labels in some) else torch.cat(both))
        else:
            found.append(walker.found.labels.meet(some, value.shape[axis], f"{where(node)}: {MEETS}"))
    return tuple(found)


def stack(walker: Walker, node: fx.Node, value: Tensor) -> Axes:
    """Units that lie above each other stay or go together."""
    every = walker.of(node.args[0])
    dim = walker.dim(node, value.ndim)
    found: list[Tensor | None] = []
    for axis in range(value.ndim - 1):
        some = [axes[axis] for axes in every]
        found.append(walker.found.labels.meet(some, value.shape[axis + (axis >= dim)], f"{where(node)}: {MEETS}"))
    found.insert(dim, None)
    return tuple(found)


def unbind(walker: Walker, node: fx.Node, value: Sequence[Tensor]) -> tuple[Axes, ...]:
    """Takes parts along another axis; along their own, units stay."""
    axes = walker.of(node.args[0])
    dim = walker.dim(node, len(axes))
    walker.freeze(axes[dim], f"{where(node)} picks single places")
    return tuple((*axes[:dim], *axes[dim + 1 :]) for _ in value)


def _pieces(walker: Walker, node: fx.Node, parts: Sequence[Tensor], dim: int) -> tuple[Axes, ...]:
    axes = walker.of(node.args[0])
    return tuple((*axes[:dim], part, *axes[dim + 1 :]) for part in parts)


def chunk(walker: Walker, node: fx.Node, value: Sequence[Tensor]) -> Any:
    """Units at the same place of each of several equal parts stay or go together."""
    axes = walker.of(node.args[0])
    return _equal_parts(walker, node, value, walker.dim(node, len(axes), 2))


def _equal_parts(walker: Walker, node: fx.Node, value: Sequence[Tensor], dim: int) -> Any:
    axes = walker.of(node.args[0])
    if axes[dim] is None:
        return tuple(axes for _ in value)
    if len({one.shape[dim] for one in value}) > 1:
        raise Unfollowed("parts units unequally")
    first = walker.found.labels.tie(axes[dim].reshape(len(value), -1), 0)
    return _pieces(walker, node, [first] * len(value), dim)


@sized
def split(walker: Walker, node: fx.Node, value: Sequence[Tensor]) -> Any:
    """Sizes that are constants follow; units at the same place of equal parts stay or go together."""
    axes = walker.of(node.args[0])
    dim = walker.dim(node, len(axes), 2)
    name = next((one for one in ("split_size_or_sections", "split_sizes") if one in node.kwargs), "split_size")
    sizes, labels = argument(node, 1, name), axes[dim]
    if labels is None:
        walker.freeze_counts(node)
        return tuple(axes for _ in value)
    parts = list(labels.split([one.shape[dim] for one in value]))
    if isinstance(sizes, int):
        found = _equal_parts(walker, node, value, dim)
        walker.found.edits.append(Edit(node.name, position_of(node, 1, name), parts[0]))
        return found
    if isinstance(sizes, fx.Node):  # of half the units there are, half are left
        walker.found.sizes.append((union(walker.axes[sizes]), labels, f"{where(node)} parts them by another number"))
        return _equal_parts(walker, node, value, dim)
    if isinstance(sizes, tuple | list) and all(isinstance(size, int) for size in sizes):
        walker.found.edits.append(Edit(node.name, position_of(node, 1, name), parts))
        return _pieces(walker, node, parts, dim)
    raise Unfollowed("parts units by computed numbers")


def getitem(walker: Walker, node: fx.Node, value: Any) -> Any:
    """Ends of slices that are constants follow; where single units, a list or steps are picked, units stay."""
    axes, index = walker.of(node.args[0]), node.args[1]
    source = walker.value(node.args[0])
    if not isinstance(source, Tensor):
        known = isinstance(axes, tuple | dict) and len(node.all_input_nodes) == 1
        return axes[index] if known else nothing(value)
    items = list(index) if isinstance(index, tuple) else [index]
    for item in items:
        number = isinstance(item, fx.Node) and isinstance(walker.env[item], int)
        if isinstance(item, bool) or not (number or item is None or isinstance(item, int | slice | type(Ellipsis))):
            raise Unfollowed("picks places by a list or a tensor")
    missing = source.ndim - sum(item is not None and item is not Ellipsis for item in items)
    if Ellipsis in items:
        here = items.index(Ellipsis)
        items[here : here + 1] = [slice(None)] * missing
    else:
        items += [slice(None)] * missing
    return _taken(walker, node, axes, items)


def _taken(walker: Walker, node: fx.Node, axes: Axes, items: Sequence[Any]) -> Axes:
    """Returns the labels of what an index takes, that has a slice, a number or None for each axis."""
    found: list[Tensor | None] = []
    edited: list[Any] = []
    axis = 0
    for item in items:
        edited.append(item)
        if item is None:
            found.append(None)
            continue
        labels = axes[axis]
        axis += 1
        if not isinstance(item, slice):
            walker.freeze(labels, f"{where(node)} picks single places")
        elif labels is None or item == slice(None):
            found.append(labels)
        elif item.step not in (None, 1) or any(isinstance(end, fx.Node) for end in (item.start, item.stop)):
            walker.freeze(labels, f"{where(node)} picks places by computed numbers or in steps")
            found.append(None)
        else:
            start, stop, _ = item.indices(len(labels))
            edited[-1] = slice(labels[:start], labels[:stop])
            found.append(labels[start:stop])
    if any(isinstance(item, slice) and isinstance(item.start, Tensor) for item in edited):
        walker.found.edits.append(Edit(node.name, 1, tuple(edited)))
    return tuple(found)


def narrow(walker: Walker, node: fx.Node, value: Tensor) -> Axes:
    """Start and length follow."""
    axes = list(walker.of(node.args[0]))
    dim, start, length = walker.dim(node, len(axes)), argument(node, 2, "start"), argument(node, 3, "length")
    labels = axes[dim]
    if labels is None:
        return tuple(axes)
    if not isinstance(start, int) or not isinstance(length, int):
        raise Unfollowed("picks places by computed numbers")
    start %= len(labels)
    axes[dim] = labels[start : start + length]
    for place, name, part in ((2, "start", labels[:start]), (3, "length", axes[dim])):
        walker.found.edits.append(Edit(node.name, position_of(node, place, name), part))
    return tuple(axes)
