"""Rules of norms and of slopes by channel, as modules and as functions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, fx, nn

from secateur.network.graph.labels import Axes
from secateur.network.graph.places import where
from secateur.network.graph.shapes import checked, listed
from secateur.network.graph.values import argument
from secateur.network.graph.walker import MEETS, Walker, sized


def _norm(walker: Walker, node: fx.Node, attribute: str, parts: tuple[str, ...], axes: Axes) -> None:
    """Notes what a norm has stored for the units along some axes."""
    name = str(node.target)
    module = walker.fetch_attr(name)
    walker.found.widths[name] = (attribute, axes)
    for part in parts:
        if getattr(module, part, None) is not None:
            for axis, labels in enumerate(axes):
                walker.place(f"{name}.{part}", axis, labels, "follows")


def batch_norm(walker: Walker, node: fx.Node, value: Tensor) -> Axes:
    """Has a scale, a shift and statistics per unit."""
    axes: Axes = walker.of(node.args[0])
    module = walker.fetch_attr(str(node.target))
    kinds = {1: nn.InstanceNorm1d, 2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}
    dims = next((dims for dims, kind in kinds.items() if isinstance(module, kind)), None)
    channels = min(1, value.ndim - 1) if dims is None else value.ndim - dims - 1  # instance norms take single examples
    others = [labels for axis, labels in enumerate(axes) if axis != channels]
    walker.freeze(tuple(others), f"{where(node)} takes statistics over them")
    _norm(walker, node, "num_features", ("weight", "bias", "running_mean", "running_var"), (axes[channels],))
    return axes


def group_norm(walker: Walker, node: fx.Node, value: Tensor) -> Axes:
    """Has a scale and a shift per unit; units at the same place of each group go together."""
    axes: Axes = walker.of(node.args[0])
    name = str(node.target)
    walker.freeze(axes[2:], f"{where(node)} takes statistics over them")
    if axes[1] is not None:
        groups = walker.fetch_attr(name).num_groups
        walker.found.labels.tie(axes[1].reshape(groups, -1), 0)
        walker.found.mixed[node] = (axes[1],)
    _norm(walker, node, "num_channels", ("weight", "bias"), (axes[1],))
    return axes


def layer_norm(walker: Walker, node: fx.Node, value: Tensor) -> Axes:
    """Has a scale and a shift per unit, and normalises over those that are left."""
    axes: Axes = walker.of(node.args[0])
    name = str(node.target)
    over = axes[len(axes) - len(walker.fetch_attr(name).normalized_shape) :]
    if any(labels is not None for labels in over):
        walker.found.mixed[node] = over
    _norm(walker, node, "normalized_shape", ("weight", "bias"), over)
    return axes


def prelu(walker: Walker, node: fx.Node, value: Tensor) -> Axes:
    """Has a slope per unit."""
    axes: Axes = walker.of(node.args[0])
    if walker.fetch_attr(str(node.target)).weight.numel() > 1:
        _norm(walker, node, "num_parameters", ("weight",), (axes[1],))
    return axes


def _weights(walker: Walker, node: fx.Node, axes: Axes, names: Sequence[str], start: int) -> None:
    """Has the weights of a norm that is written as a function meet what they are for."""
    for place, name in enumerate(names, start):
        own = walker.of(argument(node, place, name))
        for labels, other in zip(axes, own or (), strict=False):
            if labels is not None or other is not None:
                size = len(labels if labels is not None else other)
                walker.found.labels.meet([labels, other], size, f"{where(node)}: {MEETS}")


def batch_norm_function(walker: Walker, node: fx.Node, value: Tensor) -> Axes:
    """Has a scale, a shift and statistics per unit, which are arguments."""
    axes: Axes = walker.of(node.args[0])
    walker.freeze((axes[0], *axes[2:]), f"{where(node)} takes statistics over them")
    _weights(walker, node, axes[1:2], ("running_mean", "running_var", "weight", "bias"), 1)
    return axes


def group_norm_function(walker: Walker, node: fx.Node, value: Tensor) -> Axes:
    """Has a scale and a shift per unit, which are arguments; units at the same place of each group go together."""
    axes: Axes = walker.of(node.args[0])
    groups = walker.plain(argument(node, 1, "num_groups"))
    walker.freeze(axes[2:], f"{where(node)} takes statistics over them")
    if axes[1] is not None:
        walker.found.labels.tie(axes[1].reshape(groups, -1), 0)
        walker.found.mixed[node] = (axes[1],)
    _weights(walker, node, axes[1:2], ("weight", "bias"), 2)
    return axes


@sized
def layer_norm_function(walker: Walker, node: fx.Node, value: Tensor) -> Axes:
    """Normalises over the units that are left; sizes that are constants follow."""
    axes: Axes = walker.of(node.args[0])
    sizes = listed(walker, argument(node, 1, "normalized_shape"))
    over = axes[len(axes) - len(sizes) :]
    _weights(walker, node, over, ("weight", "bias"), 2)
    if any(labels is not None for labels in over):
        walker.found.mixed[node] = over
    inside = list(node.meta.get("nn_module_stack", {}).values())
    path, kind = inside[-1] if inside else ("", object)
    if isinstance(kind, type) and issubclass(kind, NORMS) and all(isinstance(size, int) for size in sizes):
        walker.found.widths[path] = ("normalized_shape", over)
    else:
        checked(walker, node, over, sizes, 1 if len(node.args) > 1 else "normalized_shape")
    return axes


NORMS: Any = (nn.LayerNorm, getattr(nn, "RMSNorm", nn.LayerNorm))
