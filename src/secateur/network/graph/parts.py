"""Rules of operations that put tensors side by side or take parts of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

from secateur.network.graph.labels import Axes
from secateur.network.graph.tracing import where
from secateur.network.graph.walker import Edit, Walker, argument, nothing, position_of


def cat(walker: Walker, node: fx.Node, value: Tensor) -> Axes:
    parts = node.args[0]
    assert isinstance(parts, tuple | list)
    dim = argument(node, 1, "dim", 0) % value.ndim
    every = [walker.of(part) for part in parts]
    sizes = [walker.value(part).shape[dim] for part in parts]
    found: list[Tensor | None] = []
    for axis in range(value.ndim):
        some = [axes[axis] for axes in every]
        known = [labels for labels in some if labels is not None]
        if not known:
            found.append(None)
        elif axis == dim:
            zero = [torch.zeros(size, dtype=torch.int64) for size in sizes]
            found.append(torch.cat([empty if own is None else own for own, empty in zip(some, zero, strict=True)]))
        else:
            for labels in some:
                other = torch.zeros(value.shape[axis], dtype=torch.int64) if labels is None else labels
                walker.found.labels.join(known[0], other, f"{where(node)} joins it with what can't be cut")
            found.append(known[0])
    return tuple(found)


def _pieces(walker: Walker, node: fx.Node, value: Sequence[Tensor], dim: int, parts: list[Tensor]) -> tuple[Axes, ...]:
    axes = walker.of(node.args[0])
    return tuple((*axes[:dim], part, *axes[dim + 1 :]) for part in parts)


def chunk(walker: Walker, node: fx.Node, value: Sequence[Tensor]) -> Any:
    """Equal parts stay equal: units at the same place of each part stay or go together."""
    axes = walker.of(node.args[0])
    dim = argument(node, 2, "dim", 0) % len(axes)
    return _equal_parts(walker, node, value, dim)


def _equal_parts(walker: Walker, node: fx.Node, value: Sequence[Tensor], dim: int) -> Any:
    axes = walker.of(node.args[0])
    labels = axes[dim]
    if labels is None:
        return tuple(axes for _ in value)
    if len({one.shape[dim] for one in value}) > 1:
        return walker.unknown(node, value, f"{where(node)} parts units unequally")
    first = walker.found.labels.tie(labels.reshape(len(value), -1), 0)
    return _pieces(walker, node, value, dim, [first] * len(value))


def split(walker: Walker, node: fx.Node, value: Sequence[Tensor]) -> Any:
    axes = walker.of(node.args[0])
    dim = argument(node, 2, "dim", 0) % len(axes)
    sizes = argument(node, 1, "split_size_or_sections", None) or node.kwargs.get("split_size")
    labels = axes[dim]
    if labels is None:
        return tuple(axes for _ in value)
    parts = list(labels.split([one.shape[dim] for one in value]))
    position = position_of(
        node, 1, "split_size_or_sections" if "split_size_or_sections" in node.kwargs else "split_size"
    )
    if isinstance(sizes, int):
        found = _equal_parts(walker, node, value, dim)
        walker.found.edits.append(Edit(node.name, position, parts[0]))
        return found
    if isinstance(sizes, tuple | list) and all(isinstance(size, int) for size in sizes):
        walker.found.edits.append(Edit(node.name, position, parts))
        return _pieces(walker, node, value, dim, parts)
    return walker.unknown(node, value, f"{where(node)} parts units by computed numbers")


def getitem(walker: Walker, node: fx.Node, value: Any) -> Any:
    axes, index = walker.of(node.args[0]), node.args[1]
    source = walker.value(node.args[0])
    if not isinstance(source, Tensor):
        return axes[index] if isinstance(axes, tuple) and isinstance(index, int | slice) else nothing(value)
    items = list(index) if isinstance(index, tuple) else [index]
    if any(isinstance(item, fx.Node) and isinstance(walker.env[item], Tensor) for item in items):
        return walker.unknown(node, value, f"{where(node)} picks places by a tensor")
    missing = source.ndim - sum(item is not None and item is not Ellipsis for item in items)
    if Ellipsis in items:
        here = items.index(Ellipsis)
        items[here : here + 1] = [slice(None)] * missing
    else:
        items += [slice(None)] * missing
    found: list[Tensor | None] = []
    edited: list[Any] = []
    axis = 0
    for item in items:
        if item is None:
            found.append(None)
            edited.append(None)
            continue
        labels = axes[axis]
        axis += 1
        edited.append(item)
        if not isinstance(item, slice):
            walker.freeze(labels, f"{where(node)} picks single places")
            continue
        if labels is None or item == slice(None):
            found.append(labels)
            continue
        if any(isinstance(end, fx.Node) for end in (item.start, item.stop, item.step)) or item.step not in (None, 1):
            walker.freeze(labels, f"{where(node)} picks places by computed numbers or in steps")
            found.append(None)
            continue
        start, stop, _ = item.indices(len(labels))
        edited[-1] = slice(labels[:start], labels[:stop])
        found.append(labels[start:stop])
    if any(isinstance(item, slice) and isinstance(item.start, Tensor) for item in edited):
        walker.found.edits.append(Edit(node.name, 1, tuple(edited)))
    return tuple(found)
