"""What the values and the arguments of a traced network hold."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, fx

from secateur.network.graph.labels import Count


class Unfollowed(Exception):
    """A rule meets what it can't follow."""


def tensors(value: Any) -> Iterator[Tensor]:
    """Yields the tensors in a value: a tensor, a tuple, a list, a mapping."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping | tuple | list):
        for one in value.values() if isinstance(value, Mapping) else value:
            yield from tensors(one)


def counts(axes: Any) -> Iterator[Count]:
    """Yields the numbers of units in what is known of a value."""
    if isinstance(axes, Count):
        yield axes
    elif isinstance(axes, tuple | dict):
        for one in axes.values() if isinstance(axes, dict) else axes:
            yield from counts(one)


def union(axes: Any) -> Count | None:
    """Returns what is known of a number that was computed from values."""
    found = [count.labels for count in counts(axes)]
    return Count(torch.cat(found), exact=False) if found else None


def nothing(value: Any) -> Any:
    """Returns what is known of a value in which nothing belongs to units."""
    if isinstance(value, Tensor):
        return (None,) * value.ndim
    if isinstance(value, tuple | list):
        return tuple(nothing(one) for one in value)
    return {key: nothing(one) for key, one in value.items()} if isinstance(value, Mapping) else None


def fits(axes: Any, value: Any) -> bool:
    """Returns whether labels are of a value's shape."""
    if isinstance(value, Tensor):
        pairs = zip(axes or (), value.shape, strict=False)
        some = isinstance(axes, tuple) and len(axes) == value.ndim
        return some and all(labels is None or len(labels) == size for labels, size in pairs)
    if isinstance(value, tuple | list) and any(True for _ in tensors(value)):
        some = isinstance(axes, tuple) and len(axes) == len(value)
        return some and all(fits(one, part) for one, part in zip(axes, value, strict=True))
    return True


def argument(node: fx.Node, position: int, name: str, default: Any = None) -> Any:
    """Returns an argument of a node, given by position or by name."""
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)


def position_of(node: fx.Node, position: int, name: str) -> int | str:
    """Returns where an argument of a node stands: its position, or its name."""
    return position if len(node.args) > position else name
