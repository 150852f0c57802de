"""Rules of layers that have weights: what each tensor of theirs does with units."""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from torch import Tensor, fx, nn

from secateur.network.graph.labels import Axes
from secateur.network.graph.places import where
from secateur.network.graph.values import Unfollowed, argument, nothing
from secateur.network.graph.walker import Role, Walker

TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def _bias(walker: Walker, node: fx.Node, module: nn.Module, labels: Tensor, role: Role = "produces") -> None:
    if getattr(module, "bias", None) is not None:
        walker.place(f"{node.target}.bias", 0, labels, role)


def linear(walker: Walker, node: fx.Node, value: Tensor) -> Axes:
    """Reads units by its columns, and makes new ones by its rows."""
    module, name = walker.fetch_attr(str(node.target)), str(node.target)
    axes = walker.of(node.args[0])
    walker.applied(name, value.shape, axes, value.ndim - 1)
    labels = walker.made(name, f"{name}.weight", 0, module.out_features)
    walker.place(f"{name}.weight", 1, axes[-1], "consumes")
    if axes[-1] is not None:
        walker.reads(name, axes[-1])
    walker.place(f"{name}.weight", 0, labels, "produces")
    _bias(walker, node, module, labels)
    return (*axes[:-1], labels)


def conv(walker: Walker, node: fx.Node, value: Tensor) -> Axes:
    """Reads units by its inputs, and makes new ones; with groups, units at the same place of each group go together."""
    module, name = walker.fetch_attr(str(node.target)), str(node.target)
    axes = walker.of(node.args[0])
    transposed, groups = isinstance(module, TRANSPOSED), module.groups
    at = value.ndim - len(module.kernel_size) - 1  # the axis of channels
    batch, channels, space = axes[:at], axes[at], [None] * len(module.kernel_size)
    walker.freeze(axes[at + 1 :], f"{where(node)} moves over an axis of units")
    shape = walker.value(node.args[0]).shape if transposed else value.shape  # an input place meets the whole kernel
    walker.applied(name, shape, (*batch, None, *space), at)
    channels = torch.zeros(module.in_channels, dtype=torch.int64) if channels is None else channels
    if groups > 1 and groups == module.in_channels:
        return (*batch, _depthwise(walker, node, module, channels), *space)
    if groups > 1 and transposed:
        raise Unfollowed("is grouped and transposed")
    weight, joined = f"{name}.weight", walker.found.labels
    if groups > 1:
        channels = joined.tie(channels.reshape(groups, -1), 0)
    inputs, outputs = (0, 1) if transposed else (1, 0)
    labels = walker.made(name, weight, outputs, module.out_channels)
    walker.place(weight, inputs, channels, "consumes")
    if groups == 1 and not transposed:
        walker.reads(name, channels.repeat_interleave(prod(module.kernel_size)))
    if groups > 1:
        labels = joined.tie(labels.reshape(groups, -1), 0).repeat(groups)
    walker.place(weight, outputs, labels, "produces")
    _bias(walker, node, module, labels)
    return (*batch, labels, *space)


def _depthwise(walker: Walker, node: fx.Node, module: Any, channels: Tensor) -> Tensor:
    """Each filter goes with its own channel."""
    each = module.out_channels // module.groups
    labels = channels.repeat_interleave(each)
    if isinstance(module, TRANSPOSED) and each > 1:
        raise Unfollowed("makes several filters of each channel, transposed")
    if not bool(labels.any()):
        walker.found.left[str(node.target)] = (module.out_channels, "it goes with channels that can't be cut")
    walker.place(f"{node.target}.weight", 0, labels, "follows")
    _bias(walker, node, module, labels, "follows")
    return labels


def embedding(walker: Walker, node: fx.Node, value: Tensor) -> Axes:
    """Makes units by its columns."""
    name = str(node.target)
    labels = walker.made(name, f"{name}.weight", 1, value.shape[-1])
    walker.place(f"{name}.weight", 0, None, "follows")
    walker.place(f"{name}.weight", 1, labels, "produces")
    walker.freeze(walker.of(node.args[0]), f"{where(node)} looks places up by them")
    if walker.fetch_attr(name).max_norm is not None:
        walker.freeze(labels, f"{where(node)} scales rows by the size of all of them")
    return (*([None] * (value.ndim - 1)), labels)


def recurrent(walker: Walker, node: fx.Node, value: Any) -> Any:
    """Makes hidden units: all gate rows of all layers and both directions go together, as one field counts them."""
    name = str(node.target)
    module: Any = walker.fetch_attr(name)
    axes = walker.of(node.args[0])
    if not isinstance(walker.value(node.args[0]), Tensor):
        raise Unfollowed("reads packed sequences")
    if bool(getattr(module, "proj_size", 0)):
        raise Unfollowed("projects what it gives")
    walker.freeze(axes[:-1], f"{where(node)} goes along them")
    hidden = module.hidden_size
    labels = walker.made(name, f"{name}.weight_hh_l0", 1, hidden)
    given = walker.of(argument(node, 1, "hx"))
    for state in () if given is None else given if isinstance(given[0], tuple) else (given,):
        walker.freeze(state[:-1], f"{where(node)} goes along them")
        walker.found.labels.meet([labels, state[-1]], hidden, f"{where(node)}: its first state can't be cut")
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
    walker.applied(name, output.shape, nothing(output), output.ndim - 1)
    outputs = (*([None] * (output.ndim - 1)), reads)
    states = tuple((*nothing(one)[:-1], labels) for one in (state if isinstance(state, tuple) else (state,)))
    return outputs, states if isinstance(state, tuple) else states[0]
