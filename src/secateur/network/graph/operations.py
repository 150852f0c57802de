"""Rules of operations that leave the axes as they are, meet at them, or take some together."""

from __future__ import annotations

from typing import Any

from torch import Tensor, fx, nn

from secateur.network.graph.labels import Axes
from secateur.network.graph.places import where
from secateur.network.graph.values import Unfollowed, argument
from secateur.network.graph.walker import MEETS, Walker

TOGETHER = "takes units together"
SPREADS = "has a single one meet several"


def same(walker: Walker, node: fx.Node, value: Tensor) -> Axes:
    """Leaves units as they are."""
    found: Axes = walker.of(node.args[0])
    return found


def pointwise(walker: Walker, node: fx.Node, value: Tensor) -> Axes:
    """Units that meet stay or go together; parameters and buffers that meet them follow."""
    inputs = [one for one in node.all_input_nodes if isinstance(walker.env[one], Tensor)]
    found: list[Tensor | None] = []
    for axis in range(-value.ndim, 0):
        size = value.shape[axis]
        there = [one for one in inputs if walker.env[one].ndim >= -axis]
        some = [walker.axes[one][axis] for one in there if walker.env[one].shape[axis] == size]
        single = [walker.axes[one][axis] for one in there if walker.env[one].shape[axis] != size]
        walker.freeze(tuple(single), f"{where(node)} {SPREADS}")
        found.append(walker.found.labels.meet(some, size, f"{where(node)}: {MEETS}"))
    return tuple(found)


def pooled(dims: int | None = None) -> Any:
    """Returns the rule of what works on the last axes, place by place of the others.

    Args:
        dims: How many axes; None for all behind the second.
    """

    def rule(walker: Walker, node: fx.Node, value: Any) -> Any:
        """Leaves units as they are, unless it moves over them: those stay."""
        axes = walker.of(node.args[0])
        own = len(axes) - 2 if dims is None else dims
        walker.freeze(axes[len(axes) - own :], f"{where(node)} pools over units")
        kept = (*axes[: len(axes) - own], *([None] * own))
        return (kept, kept) if isinstance(value, tuple) else kept  # the maxima and their places

    return rule


def reduced(walker: Walker, node: fx.Node, value: Tensor) -> Axes:
    """Leaves units as they are; those that it takes together stay."""
    axes = walker.of(node.args[0])
    gone = walker.dims(node, len(axes)) or list(range(len(axes)))
    if not isinstance(value, Tensor):
        raise Unfollowed(TOGETHER)
    for axis in gone:
        walker.freeze(axes[axis], f"{where(node)} {TOGETHER}")
    keep = value.ndim == len(axes)
    return tuple(None if axis in gone else labels for axis, labels in enumerate(axes) if keep or axis not in gone)


def extreme(walker: Walker, node: fx.Node, value: Any) -> Any:
    """Of two tensors: units that meet stay or go together; of one: those that it takes together stay."""
    if len(node.all_input_nodes) > 1:
        return pointwise(walker, node, value)
    if isinstance(value, Tensor):
        return reduced(walker, node, value)
    left = reduced(walker, node, value[0])
    return left, left


def over(position: int = 1) -> Any:
    """Returns the rule of a softmax, or of another operation along some axes whose places depend on each other.

    Args:
        position: Of the argument that names the axes.
    """

    def rule(walker: Walker, node: fx.Node, value: Tensor) -> Axes:
        """Leaves units as they are; those that it takes together stay."""
        axes: Axes = walker.of(node.args[0])
        if node.op == "call_module":
            dim = walker.fetch_attr(str(node.target)).dim
            dims = list(range(len(axes))) if dim is None else [dim % len(axes)]
        else:
            dims = walker.dims(node, len(axes), position, "dims" if position > 1 else "dim")
        for axis in dims:
            walker.freeze(axes[axis], f"{where(node)} {TOGETHER}")
        return axes

    return rule


def normalized(walker: Walker, node: fx.Node, value: Tensor) -> Axes:
    """Leaves units as they are; those that it takes together stay."""
    axes: Axes = walker.of(node.args[0])
    for axis in walker.dims(node, len(axes), 2) if len(node.args) > 2 or "dim" in node.kwargs else [1]:
        walker.freeze(axes[axis], f"{where(node)} {TOGETHER}")
    return axes


def matmul(walker: Walker, node: fx.Node, value: Tensor) -> Axes:
    """Rows of the first and columns of the second go on; units that it sums over stay."""
    pair = [walker.of(one) for one in node.args[:2]]
    sizes = [walker.value(one).shape for one in node.args[:2]]
    if len(node.args) < 2 or any(len(axes) < 2 for axes in pair):
        raise Unfollowed("multiplies vectors")
    (*batch1, rows, inner1), (*batch2, inner2, columns) = pair
    walker.freeze((inner1, inner2), f"{where(node)} sums over them")
    found: list[Tensor | None] = []
    for axis in range(-value.ndim, -2):
        sides = ((batch1, sizes[0]), (batch2, sizes[1]))
        there = [(own[axis + 2], size[axis]) for own, size in sides if len(size) >= -axis]
        some = [labels for labels, size in there if size == value.shape[axis]]
        walker.freeze(tuple(labels for labels, size in there if size != value.shape[axis]), f"{where(node)} {SPREADS}")
        found.append(walker.found.labels.meet(some, value.shape[axis], f"{where(node)}: {MEETS}"))
        if len(some) == 2 and found[-1] is not None:
            walker.found.heads.append(found[-1])
    return (*found, rows, columns)


def einsum(walker: Walker, node: fx.Node, value: Tensor) -> Axes:
    """Units under one letter stay or go together; those that it sums over stay."""
    equation, *operands = node.args
    operands = list(operands[0]) if len(operands) == 1 and isinstance(operands[0], tuple | list) else operands
    if not isinstance(equation, str) or "." in equation or "->" not in equation:
        raise Unfollowed("is given no equation with all of its letters")
    left, right = equation.replace(" ", "").split("->")
    by_letter: dict[str, list[Tensor | None]] = {}
    for letters, one in zip(left.split(","), operands, strict=True):
        for letter, labels, size in zip(letters, walker.of(one), walker.value(one).shape, strict=True):
            if size != value.shape[right.index(letter)] if letter in right else letters.count(letter) > 1:
                raise Unfollowed("repeats places")
            by_letter.setdefault(letter, []).append(labels)
    for letter, some in by_letter.items():
        if letter not in right:
            walker.freeze(tuple(some), f"{where(node)} sums over them")
    meets = f"{where(node)}: {MEETS}"
    return tuple(
        walker.found.labels.meet(by_letter[letter], size, meets)
        for letter, size in zip(right, value.shape, strict=True)
    )


def attention(walker: Walker, node: fx.Node, value: Tensor) -> Axes:
    """Heads stay or go together, and the values' features go on; units that it sums over stay."""
    names = ("query", "key", "value")
    query, key, values = (walker.of(argument(node, place, name)) for place, name in enumerate(names))
    mask = walker.of(argument(node, 3, "attn_mask"))
    if len({walker.value(argument(node, place, name)).shape[:-2] for place, name in enumerate(names)}) > 1:
        raise Unfollowed("repeats heads")
    walker.freeze((query[-2:], key[-2:], values[-2], mask), f"{where(node)} takes units together")
    found: list[Tensor | None] = []
    for axis in range(-value.ndim, -2):
        some = [axes[axis] for axes in (query, key, values)]
        found.append(walker.found.labels.meet(some, value.shape[axis], f"{where(node)}: {MEETS}"))
    walker.found.heads += [labels for labels in found if labels is not None]
    return (*found, None, values[-1])


def gated(walker: Walker, node: fx.Node, value: Tensor) -> Axes:
    """A unit goes with its gate in the other half."""
    axes = list(walker.of(node.args[0]))
    module = walker.fetch_attr(str(node.target)) if isinstance(node.target, str) else None
    dim = module.dim if isinstance(module, nn.GLU) else walker.dim(node, len(axes), default=-1)
    if axes[dim] is not None:
        axes[dim] = walker.found.labels.tie(axes[dim].reshape(2, -1), 0)
    return tuple(axes)


def shuffled_channels(walker: Walker, node: fx.Node, value: Tensor) -> Axes:
    """Units at the same place of each group stay or go together."""
    axes = walker.of(node.args[0])
    module = walker.fetch_attr(str(node.target)) if node.op == "call_module" else None
    groups = walker.plain(argument(node, 1, "groups")) if module is None else module.groups
    if axes[1] is None:
        return axes  # type: ignore[no-any-return]
    first = walker.found.labels.tie(axes[1].reshape(groups, -1), 0)
    return (axes[0], first.repeat_interleave(groups), *axes[2:])
