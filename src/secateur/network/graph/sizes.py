"""The rule of what gives no tensor: sizes, and numbers that are computed from them."""

from __future__ import annotations

import operator
from typing import Any

from torch import Tensor, fx

from secateur.network.graph.labels import Count
from secateur.network.graph.places import where
from secateur.network.graph.values import argument, nothing, tensors, union
from secateur.network.graph.walker import Walker, sized

FACTS = (
    *("dtype", "device", "ndim", "dim", "ndimension", "is_cuda", "layout", "requires_grad", "is_floating_point"),
    *("is_complex", "is_contiguous", "element_size", "itemsize", "get_device", "is_nested"),
)  # of a tensor, that don't depend on its shape


@sized
def number(walker: Walker, node: fx.Node, value: Any) -> Any:
    """Notes which units a number depends on."""
    source, axes = walker.value(node.args[0]), walker.of(node.args[0])
    if isinstance(source, Tensor):
        return _of_tensor(walker, node, value)
    if any(True for one in node.all_input_nodes for _ in tensors(walker.env[one])):
        return walker.unknown(node, value, f"{where(node)} takes a number out of them")
    if node.target is operator.getitem and isinstance(axes, tuple | dict) and len(node.all_input_nodes) == 1:
        return axes[node.args[1]]  # type: ignore[index]
    if node.target is operator.add and isinstance(value, tuple):
        one, two = (walker.of(part) or nothing(walker.value(part)) for part in node.args)
        return (*one, *two)
    count = union(tuple(walker.axes[one] for one in node.all_input_nodes))
    return (count,) * len(value) if isinstance(value, tuple | list) else count


def _of_tensor(walker: Walker, node: fx.Node, value: Any) -> Any:
    name = node.args[1] if node.target is getattr else node.target
    counts = tuple(None if labels is None else Count(labels, exact=True) for labels in walker.of(node.args[0]))
    if name in ("shape", "size"):
        dim = argument(node, 1, "dim") if name == "size" else None
        return counts if dim is None else counts[dim] if isinstance(dim, int) else union(counts)
    if name in ("numel", "nelement"):
        return union(counts)
    if name not in FACTS:
        return walker.unknown(node, value, f"{where(node)} takes a number out of them")
    return nothing(value)
