"""Walks through a traced network, and notes which places of which tensors belong together."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from secateur.network.graph.labels import Labels
from secateur.network.graph.tracing import where

Rule = Callable[["Walker", fx.Node, Any], Any]  # see `rules`
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
    """Runs a graph on example inputs and follows the labels.

    Args:
        module: The graph.
        rule_of: Gives an operation's rule, by its node and by the module that it calls; None where there is none.
    """

    def __init__(self, module: fx.GraphModule, rule_of: Callable[[fx.Node, nn.Module | None], Rule | None]) -> None:
        super().__init__(module)
        self._rule_of = rule_of
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
        module = self.fetch_attr(str(node.target)) if node.op == "call_module" else None
        rule = self._rule_of(node, module)
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


def argument(node: fx.Node, position: int, name: str, default: Any = None) -> Any:
    """Returns an argument of a node, given by position or by name."""
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)


def position_of(node: fx.Node, position: int, name: str) -> int | str:
    """Returns where an argument of a node stands: its position, or its name."""
    return position if len(node.args) > position else name


def dims_of(node: fx.Node, ndim: int, position: int = 1, name: str = "dim") -> list[int]:
    """Returns the axes that a node works over, none of them negative; all of them if it doesn't say."""
    given = argument(node, position, name)
    if given is None:
        return list(range(ndim))
    return [one % ndim for one in ([given] if isinstance(given, int) else given)]
