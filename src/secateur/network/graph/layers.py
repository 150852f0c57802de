"""Rules of layers that have weights: what each tensor of theirs does with units."""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from secateur.network.graph.labels import Axes
from secateur.network.graph.tracing import where
from secateur.network.graph.walker import Edit, Role, Walker, argument, nothing


def _bias(walker: Walker, node: fx.Node, module: nn.Module, labels: Tensor, role: Role = "produces") -> None:
    if getattr(module, "bias", None) is not None:
        walker.place(f"{node.target}.bias", 0, labels, role)


def linear(walker: Walker, node: fx.Node, value: Tensor) -> Axes:
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


def conv(walker: Walker, node: fx.Node, value: Tensor) -> Axes:
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


def batch_norm(walker: Walker, node: fx.Node, value: Tensor) -> Axes:
    name = str(node.target)
    axes: Axes = walker.of(node.args[0])
    module = walker.fetch_attr(name)
    channels = 1 if value.ndim > 1 else 0
    for part in ("weight", "bias", "running_mean", "running_var"):
        if getattr(module, part, None) is not None:
            walker.place(f"{name}.{part}", 0, axes[channels], "follows")
    return axes


def group_norm(walker: Walker, node: fx.Node, value: Tensor) -> Axes:
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


def layer_norm(walker: Walker, node: fx.Node, value: Tensor) -> Axes:
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


def functional_norm(walker: Walker, node: fx.Node, value: Tensor) -> Any:
    """A layer norm or a group norm as a function, whose weights are the model's own."""
    axes: Axes = walker.of(node.args[0])
    grouped = node.target is functional.group_norm
    labels = axes[1 if grouped else -1]
    sizes: Any = node.args[1]
    weights = [one for one in (argument(node, 2, "weight"), argument(node, 3, "bias")) if one is not None]
    plain = all(isinstance(one, fx.Node) and one.op == "get_attr" for one in weights)
    if not plain or not weights or not (isinstance(sizes, int) if grouped else len(sizes) == 1):
        return walker.unknown(node, value, f"{where(node)} has weights, or sizes, of a kind that isn't followed")
    names = [str(one.target) for one in weights]
    for name in names:
        walker.place(name, 0, labels, "follows")
    if labels is None:
        return axes
    owner = names[0].rpartition(".")[0]
    walker.found.mixed.add(owner)
    if grouped:
        walker.found.labels.tie(labels.reshape(sizes, -1), 0)
    elif not _says_its_sizes(node):
        walker.found.edits.append(Edit(node.name, 1, [labels]))
    return axes


def _says_its_sizes(node: fx.Node) -> bool:
    """Whether an operation is written in a kind of LayerNorm, whose attribute says over how many places it goes."""
    inside = list(node.meta.get("nn_module_stack", {}).values())
    return bool(inside) and isinstance(inside[-1][1], type) and issubclass(inside[-1][1], nn.LayerNorm)


def prelu(walker: Walker, node: fx.Node, value: Tensor) -> Axes:
    name = str(node.target)
    axes: Axes = walker.of(node.args[0])
    if walker.fetch_attr(name).weight.numel() > 1:
        walker.place(f"{name}.weight", 0, axes[1], "follows")
    return axes


def embedding(walker: Walker, node: fx.Node, value: Tensor) -> Axes:
    name = str(node.target)
    labels = walker.made(name, f"{name}.weight", 1, value.shape[-1])
    walker.place(f"{name}.weight", 1, labels, "produces")
    return (*([None] * (value.ndim - 1)), labels)


def recurrent(walker: Walker, node: fx.Node, value: Any) -> Any:
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
