"""What each operation does to the units of what it reads.

A rule gets the walker, the node and the value that the node gave, and returns the labels of the result's axes. What no
rule knows freezes the units that come in.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from secateur.network.graph.labels import Axes, Labels
from secateur.network.graph.tracing import where

Role = str  # `produces`, `consumes` or `follows`


@dataclass
class Place:
    """One axis of one stored tensor.

    Attributes:
        labels: (size,) by place.
        role: What the tensor does with the units there.
    """

    labels: Tensor
    role: Role


@dataclass
class Edit:
    """A constant in the model's code that counts units.

    Attributes:
        node: Name of the node of the graph.
        position: Of the argument, or its name.
        value: The argument, with labels where a number stands for places: that many of them as are left.
    """

    node: str
    position: int | str
    value: Any


@dataclass
class Found:
    """What a walk finds out."""

    labels: Labels = field(default_factory=Labels)
    places: dict[tuple[str, int], Place] = field(default_factory=dict)
    edits: list[Edit] = field(default_factory=list)
    readers: list[tuple[str, Tensor]] = field(default_factory=list)  # module, labels of the columns of its matrix
    order: list[str] = field(default_factory=list)  # modules that produce units, in the order of computation
    mixed: set[str] = field(default_factory=set)  # norms over several units
    positions: dict[str, float] = field(default_factory=dict)  # per example, at which a layer's weight is applied


class Walker(fx.Interpreter):
    """Runs a graph on example inputs and follows the labels."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.found = Found()
        self.axes: dict[fx.Node, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        self.axes[n] = self._follow(n, value)
        return value

    def _follow(self, node: fx.Node, value: Any) -> Any:
        if node.op == "output":
            for one in node.all_input_nodes:
                self.freeze(self.axes[one], "it is an output of the network")
            return None
        if node.op in ("placeholder", "get_attr"):
            return nothing(value)
        rule: Callable[[Walker, fx.Node, Any], Any] | None
        if node.op == "call_module":
            module = self.fetch_attr(str(node.target))
            rule = next((rule for kinds, rule in MODULES if isinstance(module, kinds)), None)
        elif node.op == "call_method":
            rule = METHODS.get(str(node.target)) or FUNCTIONS.get(getattr(torch, str(node.target), None))
        else:
            rule = FUNCTIONS.get(node.target)
        if rule is None:
            return self.unknown(node, value, f"{where(node)} isn't an operation that can be followed")
        return rule(self, node, value)

    def unknown(self, node: fx.Node, value: Any, reason: str) -> Any:
        """Freezes all that comes in."""
        for one in node.all_input_nodes:
            self.freeze(self.axes[one], reason)
        return nothing(value)

    def freeze(self, axes: Any, reason: str) -> None:
        """Freezes all units of a value."""
        if isinstance(axes, Tensor):
            self.found.labels.freeze(axes, reason)
        elif isinstance(axes, tuple | list):
            for one in axes:
                self.freeze(one, reason)

    def of(self, argument: Any) -> Any:
        """Returns the labels of an argument."""
        if isinstance(argument, fx.Node):
            return self.axes[argument]
        if isinstance(argument, tuple | list):
            return tuple(self.of(one) for one in argument)
        return None

    def value(self, argument: Any) -> Any:
        """Returns an argument's value."""
        return fx.map_arg(argument, lambda node: self.env[node])

    def place(self, name: str, axis: int, labels: Tensor | None, role: Role) -> None:
        """Notes the units along an axis of a stored tensor. A tensor that is used twice has the same ones each time."""
        size = self._stored(name).shape[axis]
        labels = torch.zeros(size, dtype=torch.int64) if labels is None else labels
        before = self.found.places.get((name, axis))
        if before is not None:
            self.found.labels.join(before.labels, labels, f"{name} is used in several places, in one of them uncut")
        else:
            self.found.places[name, axis] = Place(labels, role)

    def _stored(self, name: str) -> Tensor:
        found: Tensor = operator.attrgetter(name)(self.module)
        return found

    def made(self, module: str, name: str, axis: int, number: int) -> Tensor:
        """Returns the labels of the units that a module makes: new ones at its first call."""
        before = self.found.places.get((name, axis))
        if before is not None:
            return before.labels
        self.found.order.append(module)
        return self.found.labels.fresh(number)

    def applied(self, module: str, tensor: Tensor, channels: int) -> None:
        """Counts at how many places a layer's weight is applied."""
        places = tensor.numel() / channels / (tensor.shape[0] if tensor.ndim > 1 else 1)
        self.found.positions[module] = self.found.positions.get(module, 0.0) + places


def nothing(value: Any) -> Any:
    """Returns no labels for a value."""
    if isinstance(value, Tensor):
        return (None,) * value.ndim
    if isinstance(value, tuple | list):
        return tuple(nothing(one) for one in value)
    return None


def _argument(node: fx.Node, position: int, name: str, default: Any = None) -> Any:
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)


def _position(node: fx.Node, position: int, name: str) -> int | str:
    return position if len(node.args) > position else name


# modules


def _bias(walker: Walker, node: fx.Node, module: nn.Module, labels: Tensor, role: Role = "produces") -> None:
    if getattr(module, "bias", None) is not None:
        walker.place(f"{node.target}.bias", 0, labels, role)


def _linear(walker: Walker, node: fx.Node, value: Tensor) -> Axes:
    module, name = walker.fetch_attr(str(node.target)), str(node.target)
    axes = walker.of(node.args[0])
    walker.applied(name, value, value.shape[-1])
    walker.place(f"{name}.weight", 1, axes[-1], "consumes")
    if axes[-1] is not None:
        walker.found.readers.append((name, axes[-1]))
    labels = walker.made(name, f"{name}.weight", 0, module.out_features)
    walker.place(f"{name}.weight", 0, labels, "produces")
    _bias(walker, node, module, labels)
    return (*axes[:-1], labels)


def _conv(walker: Walker, node: fx.Node, value: Tensor) -> Axes:
    module, name = walker.fetch_attr(str(node.target)), str(node.target)
    axes = walker.of(node.args[0])
    reason = f"{where(node)} moves over an axis of units"
    transposed = isinstance(module, nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d)
    if transposed:  # each input place meets the whole kernel
        walker.applied(name, walker.value(node.args[0]), module.in_channels)
    else:
        walker.applied(name, value, module.out_channels)
    spatial = value.ndim - 2
    batch = axes[: len(axes) - spatial - 1]
    channels = axes[len(axes) - spatial - 1]
    walker.freeze(axes[len(axes) - spatial :], reason)
    weight, groups = f"{name}.weight", module.groups
    channels = torch.zeros(module.in_channels, dtype=torch.int64) if channels is None else channels
    joined = walker.found.labels
    if groups > 1 and groups == module.in_channels:  # depthwise: each filter goes with its own channel
        each = module.out_channels // groups
        labels = channels.repeat_interleave(each)
        if each > 1 or transposed:
            walker.freeze(labels, f"{where(node)} makes several filters of each channel")
        walker.place(weight, 0, labels, "follows")
        _bias(walker, node, module, labels, "follows")
        return (*batch, labels, *([None] * spatial))
    if groups > 1:
        channels = joined.tie(channels.reshape(groups, -1), 0)
    inputs, outputs = (0, 1) if transposed else (1, 0)
    if groups > 1 and transposed:
        walker.freeze(channels, f"{where(node)} is grouped and transposed")
        return nothing(value)  # type: ignore[no-any-return]
    walker.place(weight, inputs, channels, "consumes")
    if groups == 1 and not transposed:
        walker.found.readers.append((name, channels.repeat_interleave(prod(module.kernel_size))))
    labels = walker.made(name, weight, outputs, module.out_channels)
    if groups > 1:
        labels = joined.tie(labels.reshape(groups, -1), 0).repeat(groups)
    walker.place(weight, outputs, labels, "produces")
    _bias(walker, node, module, labels)
    return (*batch, labels, *([None] * spatial))


def _batch_norm(walker: Walker, node: fx.Node, value: Tensor) -> Axes:
    name = str(node.target)
    axes: Axes = walker.of(node.args[0])
    module = walker.fetch_attr(name)
    channels = 1 if value.ndim > 1 else 0
    for part in ("weight", "bias", "running_mean", "running_var"):
        if getattr(module, part, None) is not None:
            walker.place(f"{name}.{part}", 0, axes[channels], "follows")
    return axes


def _group_norm(walker: Walker, node: fx.Node, value: Tensor) -> Axes:
    name = str(node.target)
    axes: Axes = walker.of(node.args[0])
    module, labels = walker.fetch_attr(name), axes[1]
    if labels is None:
        return axes
    walker.found.labels.tie(labels.reshape(module.num_groups, -1), 0)
    walker.found.mixed.add(name)
    for part in ("weight", "bias"):
        if getattr(module, part, None) is not None:
            walker.place(f"{name}.{part}", 0, labels, "follows")
    return axes


def _layer_norm(walker: Walker, node: fx.Node, value: Tensor) -> Axes:
    name = str(node.target)
    axes: Axes = walker.of(node.args[0])
    module = walker.fetch_attr(name)
    over = len(module.normalized_shape)
    for axis in range(over):
        labels = axes[len(axes) - over + axis]
        if labels is not None:
            walker.found.mixed.add(name)
        for part in ("weight", "bias"):
            if getattr(module, part, None) is not None and (labels is not None or over == 1):
                walker.place(f"{name}.{part}", axis, labels, "follows")
    return axes


def _prelu(walker: Walker, node: fx.Node, value: Tensor) -> Axes:
    name = str(node.target)
    axes: Axes = walker.of(node.args[0])
    if walker.fetch_attr(name).weight.numel() > 1:
        walker.place(f"{name}.weight", 0, axes[1], "follows")
    return axes


def _embedding(walker: Walker, node: fx.Node, value: Tensor) -> Axes:
    name = str(node.target)
    labels = walker.made(name, f"{name}.weight", 1, value.shape[-1])
    walker.place(f"{name}.weight", 1, labels, "produces")
    return (*([None] * (value.ndim - 1)), labels)


def _recurrent(walker: Walker, node: fx.Node, value: Any) -> Any:
    """The gate rows of a hidden unit go together, in all layers and both directions: one field counts them."""
    name = str(node.target)
    module: Any = walker.fetch_attr(name)
    axes = walker.of(node.args[0])
    if len(node.args) > 1 or node.kwargs or bool(getattr(module, "proj_size", 0)):
        return walker.unknown(node, value, f"{where(node)} is given its first state, or projects it")
    hidden = module.hidden_size
    labels = walker.made(name, f"{name}.weight_hh_l0", 1, hidden)
    directions = 2 if module.bidirectional else 1
    reads = axes[-1]
    for layer in range(module.num_layers):
        for suffix in ("", "_reverse")[:directions]:
            end = f"_l{layer}{suffix}"
            gates = getattr(module, f"weight_hh{end}").shape[0] // hidden
            walker.place(f"{name}.weight_ih{end}", 1, reads, "consumes")
            walker.place(f"{name}.weight_ih{end}", 0, labels.repeat(gates), "produces")
            walker.place(f"{name}.weight_hh{end}", 0, labels.repeat(gates), "produces")
            walker.place(f"{name}.weight_hh{end}", 1, labels, "consumes")
            for bias in ("bias_ih", "bias_hh"):
                if module.bias:
                    walker.place(f"{name}.{bias}{end}", 0, labels.repeat(gates), "produces")
        reads = labels.repeat(directions)
    output, state = value
    walker.applied(name, output, output.shape[-1])
    outputs = (*([None] * (output.ndim - 1)), reads)
    if isinstance(state, tuple):
        return outputs, tuple((*([None] * (one.ndim - 1)), labels) for one in state)
    return outputs, (*([None] * (state.ndim - 1)), labels)


# operations that leave the axes as they are, or move them


def _same(walker: Walker, node: fx.Node, value: Tensor) -> Axes:
    found: Axes = walker.of(node.args[0])
    return found


def _constant(walker: Walker, node: fx.Node, value: Any) -> Any:
    return nothing(value)


def _pooled(walker: Walker, node: fx.Node, value: Any) -> Any:
    """Works on the last axes, place by place of the others."""
    axes = walker.of(node.args[0])
    first = value[0] if isinstance(value, tuple) else value
    moved = [axis for axis in range(len(axes)) if axis >= 2 or (len(axes) < 4 and axis == len(axes) - 1)]
    for axis in moved:
        walker.freeze(axes[axis], f"{where(node)} pools over units")
    kept = tuple(None if axis in moved else axes[axis] for axis in range(first.ndim))
    return (kept, kept) if isinstance(value, tuple) else kept


def _dims(node: fx.Node, ndim: int, position: int = 1, name: str = "dim") -> list[int]:
    given = _argument(node, position, name)
    if given is None:
        return list(range(ndim))
    return [one % ndim for one in ([given] if isinstance(given, int) else given)]


def _reduced(walker: Walker, node: fx.Node, value: Any) -> Any:
    axes = walker.of(node.args[0])
    first = value[0] if isinstance(value, tuple) else value
    gone = _dims(node, len(axes))
    for axis in gone:
        walker.freeze(axes[axis], f"{where(node)} takes units together")
    keep = first.ndim == len(axes)
    left = tuple(None if axis in gone else labels for axis, labels in enumerate(axes) if keep or axis not in gone)
    return (left, left) if isinstance(value, tuple) else left


def _over(walker: Walker, node: fx.Node, value: Tensor) -> Axes:
    """A softmax or a normalisation over some axes, whose shape stays."""
    axes: Axes = walker.of(node.args[0])
    module = walker.fetch_attr(str(node.target)) if node.op == "call_module" else None
    if module is not None:
        dims = [] if module.dim is None else [module.dim % len(axes)]
    else:
        dims = _dims(node, len(axes))
    for axis in dims:
        walker.freeze(axes[axis], f"{where(node)} takes units together")
    return axes


def _binary(walker: Walker, node: fx.Node, value: Any) -> Any:
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


def _cat(walker: Walker, node: fx.Node, value: Tensor) -> Axes:
    parts = node.args[0]
    assert isinstance(parts, tuple | list)
    dim = _argument(node, 1, "dim", 0) % value.ndim
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


def _chunk(walker: Walker, node: fx.Node, value: Sequence[Tensor]) -> Any:
    """Equal parts stay equal: units at the same place of each part stay or go together."""
    axes = walker.of(node.args[0])
    dim = _argument(node, 2, "dim", 0) % len(axes)
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


def _split(walker: Walker, node: fx.Node, value: Sequence[Tensor]) -> Any:
    axes = walker.of(node.args[0])
    dim = _argument(node, 2, "dim", 0) % len(axes)
    sizes = _argument(node, 1, "split_size_or_sections", None) or node.kwargs.get("split_size")
    labels = axes[dim]
    if labels is None:
        return tuple(axes for _ in value)
    parts = list(labels.split([one.shape[dim] for one in value]))
    position = _position(node, 1, "split_size_or_sections" if "split_size_or_sections" in node.kwargs else "split_size")
    if isinstance(sizes, int):
        found = _equal_parts(walker, node, value, dim)
        walker.found.edits.append(Edit(node.name, position, parts[0]))
        return found
    if isinstance(sizes, tuple | list) and all(isinstance(size, int) for size in sizes):
        walker.found.edits.append(Edit(node.name, position, parts))
        return _pieces(walker, node, value, dim, parts)
    return walker.unknown(node, value, f"{where(node)} parts units by computed numbers")


def _getitem(walker: Walker, node: fx.Node, value: Any) -> Any:
    axes, index = walker.of(node.args[0]), node.args[1]
    source = walker.value(node.args[0])
    if not isinstance(source, Tensor):
        return axes[index] if isinstance(axes, tuple) and isinstance(index, int) else nothing(value)
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


def _reshape(walker: Walker, node: fx.Node, value: Tensor) -> Axes:
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
        if isinstance(size, int) and size != -1 and labels is not None:
            if several:
                shape = [labels if place == position else one for place, one in enumerate(shape)]
            else:
                walker.found.edits.append(Edit(node.name, position + 1, labels))
    if several and any(isinstance(size, Tensor) for size in shape):
        walker.found.edits.append(Edit(node.name, 1, list(shape)))
    return found


def _unflatten(walker: Walker, node: fx.Node, value: Tensor) -> Axes:
    axes, source = walker.of(node.args[0]), walker.value(node.args[0])
    found = walker.found.labels.reshaped(axes, source.shape, value.shape, f"{where(node)} mixes units of two axes")
    changed = [
        labels for labels, before in zip(found, axes, strict=False) if labels is not before and labels is not None
    ]
    for labels in changed:
        walker.freeze(labels, f"{where(node)} has its sizes as constants")
    return found


def _permuted(walker: Walker, node: fx.Node, value: Tensor) -> Axes:
    axes = walker.of(node.args[0])
    order: Any = node.args[1] if len(node.args) == 2 and isinstance(node.args[1], tuple | list) else node.args[1:]
    order = node.kwargs.get("dims", order)
    return tuple(axes[axis % len(axes)] for axis in order)


def _transposed(walker: Walker, node: fx.Node, value: Tensor) -> Axes:
    axes = list(walker.of(node.args[0]))
    one, two = (_argument(node, 1, "dim0"), _argument(node, 2, "dim1")) if len(axes) > 1 else (0, 0)
    if node.target in ("t", torch.t):
        one, two = 0, len(axes) - 1
    axes[one], axes[two] = axes[two], axes[one]
    return tuple(axes)


def _squeezed(walker: Walker, node: fx.Node, value: Tensor) -> Axes:
    axes, source = walker.of(node.args[0]), walker.value(node.args[0])
    dims = _dims(node, source.ndim)
    gone = [axis for axis in dims if source.shape[axis] == 1]
    for axis in gone:
        walker.freeze(axes[axis], f"{where(node)} takes an axis of one unit away")
    return tuple(labels for axis, labels in enumerate(axes) if axis not in gone)


def _unsqueezed(walker: Walker, node: fx.Node, value: Tensor) -> Axes:
    axes = list(walker.of(node.args[0]))
    axes.insert(_argument(node, 1, "dim") % value.ndim, None)
    return tuple(axes)


def _expanded(walker: Walker, node: fx.Node, value: Tensor) -> Axes:
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


def _flipped(walker: Walker, node: fx.Node, value: Tensor) -> Axes:
    axes = list(walker.of(node.args[0]))
    dims = _argument(node, 1, "dims")
    for axis in [dims] if isinstance(dims, int) else dims:
        labels = axes[axis]
        axes[axis] = None if labels is None else labels.flip(0)
    return tuple(axes)


def _padded(walker: Walker, node: fx.Node, value: Tensor) -> Axes:
    """Zeros beside units are units of their own, until something is added to them."""
    axes = list(walker.of(node.args[0]))
    if node.op == "call_module":
        module = walker.fetch_attr(str(node.target))
        pads, mode = list(module.padding), "constant"
        constant = getattr(module, "value", 0.0) == 0
    else:
        pads, mode = _argument(node, 1, "pad"), _argument(node, 2, "mode", "constant")
        constant = _argument(node, 3, "value", None) in (None, 0, 0.0)
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
        walker.found.edits.append(Edit(node.name, _position(node, 1, "pad"), edited))
    return tuple(axes)


def _shuffled(walker: Walker, node: fx.Node, value: Tensor) -> Axes:
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


def _attribute(walker: Walker, node: fx.Node, value: Any) -> Any:
    if node.args[1] in ("T", "mT") and isinstance(value, Tensor):
        axes = list(walker.of(node.args[0]))
        axes[-1], axes[-2] = axes[-2], axes[-1]
        return tuple(axes)
    return nothing(value)


CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
ACTIVATIONS = (
    *(
        nn.ReLU,
        nn.ReLU6,
        nn.GELU,
        nn.SiLU,
        nn.Sigmoid,
        nn.Tanh,
        nn.Hardswish,
        nn.Hardsigmoid,
        nn.Hardtanh,
        nn.LeakyReLU,
    ),
    *(
        nn.ELU,
        nn.SELU,
        nn.CELU,
        nn.Mish,
        nn.Softplus,
        nn.LogSigmoid,
        nn.Identity,
        nn.Dropout,
        nn.Dropout1d,
        nn.Dropout2d,
    ),
    *(nn.Dropout3d, nn.AlphaDropout),
)
POOLS = (
    *(nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.Upsample),
    *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d),
    *(nn.AdaptiveMaxPool3d, nn.UpsamplingNearest2d, nn.UpsamplingBilinear2d, nn.LPPool2d),
)
MODULES: tuple[tuple[tuple[type[nn.Module], ...], Callable[[Walker, fx.Node, Any], Any]], ...] = (
    ((nn.Linear,), _linear),
    (CONVOLUTIONS, _conv),
    ((nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm), _batch_norm),
    ((nn.GroupNorm,), _group_norm),
    ((nn.LayerNorm, *([nn.RMSNorm] if hasattr(nn, "RMSNorm") else [])), _layer_norm),
    ((nn.PReLU,), _prelu),
    ((nn.Embedding,), _embedding),
    ((nn.LSTM, nn.GRU, nn.RNN), _recurrent),
    (ACTIVATIONS, _same),
    (POOLS, _pooled),
    ((nn.Softmax, nn.LogSoftmax), _over),
    ((nn.Flatten,), _reshape),
    ((nn.Unflatten,), _unflatten),
    ((nn.PixelShuffle, nn.PixelUnshuffle), _shuffled),
    ((nn.ConstantPad1d, nn.ConstantPad2d, nn.ConstantPad3d), _padded),
    ((nn.ReflectionPad1d, nn.ReflectionPad2d, nn.ReplicationPad1d, nn.ReplicationPad2d), _pooled),
)
UNARY = (
    *(torch.relu, torch.sigmoid, torch.tanh, torch.abs, torch.exp, torch.sqrt, torch.rsqrt, torch.clamp, torch.neg),
    *(torch.clone, torch.square, torch.pow, torch.log, torch.dropout, operator.neg, operator.pow),
    *(functional.relu, functional.relu6, functional.gelu, functional.silu, functional.elu, functional.leaky_relu),
    *(functional.hardswish, functional.hardsigmoid, functional.hardtanh, functional.mish, functional.softplus),
    *(functional.dropout, functional.dropout2d, functional.dropout1d, functional.sigmoid, functional.tanh),
    *(functional.selu, functional.celu, functional.logsigmoid),
)
PAIRS = (
    *(operator.add, operator.sub, operator.mul, operator.truediv, operator.iadd, operator.isub, operator.imul),
    *(operator.itruediv, torch.add, torch.sub, torch.mul, torch.div, torch.maximum, torch.minimum),
)
POOLING = (
    *(
        functional.max_pool1d,
        functional.max_pool2d,
        functional.max_pool3d,
        functional.avg_pool1d,
        functional.avg_pool2d,
    ),
    *(functional.avg_pool3d, functional.adaptive_avg_pool1d, functional.adaptive_avg_pool2d, functional.interpolate),
    *(functional.adaptive_avg_pool3d, functional.adaptive_max_pool2d, functional.upsample),
)
FUNCTIONS: dict[Any, Callable[[Walker, fx.Node, Any], Any]] = {
    **dict.fromkeys(UNARY, _same),
    **dict.fromkeys(PAIRS, _binary),
    **dict.fromkeys(POOLING, _pooled),
    **dict.fromkeys((torch.mean, torch.sum, torch.amax, torch.amin), _reduced),
    **dict.fromkeys((torch.softmax, functional.softmax, functional.log_softmax, functional.normalize), _over),
    **dict.fromkeys((torch.cat, torch.concat), _cat),
    torch.chunk: _chunk,
    torch.split: _split,
    operator.getitem: _getitem,
    **dict.fromkeys((torch.flatten, torch.reshape), _reshape),
    torch.permute: _permuted,
    **dict.fromkeys((torch.transpose, torch.swapaxes, torch.t), _transposed),
    torch.squeeze: _squeezed,
    torch.unsqueeze: _unsqueezed,
    torch.flip: _flipped,
    functional.pad: _padded,
    **dict.fromkeys((functional.pixel_shuffle, functional.pixel_unshuffle), _shuffled),
    getattr: _attribute,
}
METHODS: dict[str, Callable[[Walker, fx.Node, Any], Any]] = {
    **dict.fromkeys(
        ("contiguous", "clone", "detach", "float", "to", "type", "relu", "sigmoid", "tanh", "clamp"), _same
    ),
    **dict.fromkeys(("size", "dim", "numel", "ndimension"), _constant),
    **dict.fromkeys(("add", "add_", "sub", "mul", "mul_", "div"), _binary),
    **dict.fromkeys(("mean", "sum", "amax", "amin"), _reduced),
    **dict.fromkeys(("view", "reshape", "flatten"), _reshape),
    **dict.fromkeys(("softmax", "log_softmax"), _over),
    "unflatten": _unflatten,
    "chunk": _chunk,
    "split": _split,
    "permute": _permuted,
    **dict.fromkeys(("transpose", "swapaxes", "t"), _transposed),
    "squeeze": _squeezed,
    "unsqueeze": _unsqueezed,
    **dict.fromkeys(("expand", "repeat"), _expanded),
    "flip": _flipped,
}
INTEGERS = (operator.floordiv, operator.mod, operator.mul, operator.add, operator.sub)
FUNCTIONS |= dict.fromkeys(INTEGERS, _binary)
