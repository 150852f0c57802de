"""Walks through a traced network, and notes which places of which tensors belong together."""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from types import MappingProxyType
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize

from secateur.network.graph.labels import Axes, Count, Labels
from secateur.network.graph.places import where
from secateur.network.graph.values import Unfollowed, argument, counts, fits, nothing, tensors

Rule = Callable[["Walker", fx.Node, Any], Any]  # see `rules`
Role = Literal["produces", "consumes", "follows"]
ROLES: tuple[Role, ...] = ("produces", "consumes", "follows")  # a tensor with several counts as the first of them
SIZED: set[Rule] = set()  # rules that look after numbers that come from units, and may change them
OUTPUTS = ("out_features", "out_channels", "hidden_size", "embed_dim", "embedding_dim", "num_features")
MEETS = "it meets what can't be cut"


def sized(rule: Rule) -> Rule:
    """Marks a rule that looks after numbers in its arguments that come from units; others freeze these units."""
    SIZED.add(rule)
    return rule


@dataclass
class Place:
    """One axis of one stored tensor.

    Attributes:
        labels: (size,) by place.
        role: What the tensor does with the units there.
        read: Whether it reads them, whatever else it does.
        each: How many numbers one place has.
    """

    labels: Tensor
    role: Role
    read: bool
    each: int


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

    def labels(self) -> Iterator[Tensor]:
        """Yields the labels in the value."""
        some = self.value if isinstance(self.value, tuple | list) else (self.value,)
        for one in some:
            yield from (
                part
                for part in ((one.start, one.stop) if isinstance(one, slice) else (one,))
                if isinstance(part, Tensor)
            )


@dataclass
class Found:
    """What a walk finds out.

    Attributes:
        labels: Which belong together, and which are frozen.
        places: By tensor and axis.
        edits: Constants that have to follow a cut.
        readers: Modules, with the labels of the columns of their matrix.
        made: By tensor, the module that makes units of its first axis, in the order of computation.
        heads: Labels of axes over which attention goes head by head.
        mixed: Calls of norms over several units, with the labels of the axes that they normalise over.
        widths: Modules that say in an attribute how many units they are for: the attribute, and the labels by axis.
        applied: Uses of layers: which, at how many places per example, and labels of axes that it is applied along.
        uses: How often each tensor is used.
        parted: Reshapes that part an axis of units in several, where another choice could have been made: how many
            choices there were, and the labels that were left.
        sizes: Numbers that have to come from all of some units, as they are sizes of axes of theirs; else these are
            frozen for the reason.
        left: Modules whose units can't be cut: how many they are, and why.
        examples: How many the example inputs are.
    """

    labels: Labels = field(default_factory=Labels)
    places: dict[tuple[str, int], Place] = field(default_factory=dict)
    edits: list[Edit] = field(default_factory=list)
    readers: list[tuple[str, Tensor]] = field(default_factory=list)
    made: dict[str, str] = field(default_factory=dict)
    heads: list[Tensor] = field(default_factory=list)
    mixed: dict[fx.Node, Axes] = field(default_factory=dict)
    widths: dict[str, tuple[str, Axes]] = field(default_factory=dict)
    applied: list[tuple[str, float, tuple[Tensor, ...]]] = field(default_factory=list)
    uses: Counter[str] = field(default_factory=Counter)
    parted: dict[str, tuple[int, Tensor]] = field(default_factory=dict)
    sizes: list[tuple[Count | None, Tensor, str]] = field(default_factory=list)
    left: dict[str, tuple[int, str]] = field(default_factory=dict)
    examples: int = 1

    def settle(self) -> None:
        """Freezes units whose number in the model's code isn't computed from theirs, when all is known."""
        for count, labels, reason in self.sizes:
            known = set() if count is None else set(self.labels.roots(count.labels).tolist())
            if set(self.labels.roots(labels).tolist()) <= known:
                continue
            if count is not None and count.exact:  # as long as the other axis: they lose places together
                self.labels.join(count.labels, labels, reason)
            else:
                self.labels.freeze(labels, reason)


class Walker(fx.Interpreter):
    """Runs a graph on example inputs and follows the labels.

    Args:
        module: The graph.
        rule_of: Gives an operation's rule, by its node, the module that it calls and what it gave;
            None if it has none. The last argument says whether a module does what its kind does.
        names: The name of each tensor of the model that is saved with it, by the tensor's id.
        leaves: Names of modules that aren't looked into.
        layers: Names of layers of the model's own kind that are as good as those of torch.
        choices: By reshape that parts an axis of units in several: along which of them units stay apart; else the last.
        found: Where to note what is found: a walk through another graph of the same model goes on from it.
    """

    def __init__(
        self,
        module: fx.GraphModule,
        rule_of: Callable[[fx.Node, nn.Module | None, Any, bool], Rule | None],
        names: Mapping[int, str],
        leaves: Sequence[str] = (),
        layers: Collection[str] = (),
        choices: Mapping[str, int] = MappingProxyType({}),
        found: Found | None = None,
    ) -> None:
        super().__init__(module)
        self.found = Found() if found is None else found
        self.choices = choices
        self.axes: dict[fx.Node, Any] = {}
        self._rule_of = rule_of
        self._names = names
        self._leaves = set(leaves)
        self._layers = layers

    def run(self, *args: Any, **kwargs: Any) -> Any:
        self.found.examples = next((one.shape[0] for one in tensors(args) if one.ndim), 1)
        return super().run(*args, **kwargs)

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        self.axes[n] = self._follow(n, value)
        return value

    def _follow(self, node: fx.Node, value: Any) -> Any:
        if node.op == "output":
            return self.unknown(node, None, "it is an output of the network")
        if node.op == "placeholder":
            return nothing(value)
        if node.op == "get_attr":
            return self._stored_axes(str(node.target), value)
        try:
            axes = self._ruled(node, value)
        except Unfollowed as error:
            return self.unknown(node, value, f"{where(node)} {error}")
        return axes

    def _ruled(self, node: fx.Node, value: Any) -> Any:
        module = self.fetch_attr(str(node.target)) if node.op == "call_module" else None
        if module is not None:
            self._look_into(str(node.target), module)
        rule = self._rule_of(node, module, value, str(node.target) in self._layers)
        if rule is None or not node.args:
            raise Unfollowed("isn't an operation that can be followed")
        if rule not in SIZED:
            self.freeze_counts(node)
        axes = rule(self, node, value)
        if not fits(axes, value):
            raise Unfollowed("is used in a way that isn't followed")
        return axes

    def _look_into(self, name: str, module: nn.Module) -> None:
        """Raises Unfollowed if a module is none of those that the rules are about, though it may be of their kind."""
        if name in self._leaves:
            raise Unfollowed("isn't looked into")
        if isinstance(module, nn.MultiheadAttention):
            raise Unfollowed("is as wide as its heads together, and all of them stay")
        if parametrize.is_parametrized(module) or any(isinstance(one, Tensor) for one in vars(module).values()):
            raise Unfollowed("computes its weight from others (weight norm, a mask): have it be a plain one first")

    def unknown(self, node: fx.Node, value: Any, reason: str) -> Any:
        """Freezes all that comes in, and what the node itself has stored."""
        for one in node.all_input_nodes:
            self.freeze(self.axes[one], reason)
        if node.op == "call_module":
            module = self.fetch_attr(str(node.target))
            for name, tensor in module.state_dict(keep_vars=True).items():
                for axis in range(tensor.ndim if isinstance(tensor, Tensor) else 0):
                    self.place(f"{node.target}.{name}", axis, None, "follows")
            counts_of = (getattr(module, name, None) for name in OUTPUTS)
            if any(True for _ in module.parameters()):
                self.found.left[str(node.target)] = (next((n for n in counts_of if isinstance(n, int)), 0), reason)
        return nothing(value)

    def freeze(self, axes: Any, reason: str) -> None:
        """Freezes all units of a value."""
        if isinstance(axes, Count):
            self.found.labels.freeze(axes.labels, reason)
        elif isinstance(axes, Tensor):
            self.found.labels.freeze(axes, reason)
        elif isinstance(axes, tuple | dict):
            for one in axes.values() if isinstance(axes, dict) else axes:
                self.freeze(one, reason)

    def freeze_counts(self, node: fx.Node) -> None:
        """Freezes units whose number goes into a node that isn't about shapes."""
        for one in node.all_input_nodes:
            if not isinstance(self.env[one], Tensor):
                for count in counts(self.axes[one]):
                    self.found.labels.freeze(count.labels, f"{where(node)} computes with their number")

    def of(self, given: Any) -> Any:
        """Returns the labels of an argument."""
        if isinstance(given, fx.Node):
            return self.axes[given]
        if isinstance(given, tuple | list):
            return tuple(self.of(one) for one in given)
        return None

    def value(self, given: Any) -> Any:
        """Returns an argument's value."""
        return fx.map_arg(given, lambda node: self.env[node])

    def plain(self, given: Any) -> Any:
        """Returns an argument's value where it doesn't depend on how many units there are.

        Raises:
            Unfollowed: It does.
        """
        if any(True for _ in counts(self.of(given))):
            raise Unfollowed("is given numbers that are computed from theirs")
        return self.value(given)

    def dims(self, node: fx.Node, ndim: int, position: int = 1, name: str = "dim") -> list[int]:
        """Returns the axes that a node works over, none of them negative; all of them if it doesn't say."""
        given = self.plain(argument(node, position, name, node.kwargs.get("axis")))
        if given is None or isinstance(given, bool):  # a flag that some reductions take in its place
            return list(range(ndim))
        return [one % ndim for one in ([given] if isinstance(given, int) else given)]

    def dim(self, node: fx.Node, ndim: int, position: int = 1, default: int | None = 0) -> int:
        """Returns the one axis that a node works over, not negative.

        Raises:
            Unfollowed: It doesn't say.
        """
        given = self.plain(argument(node, position, "dim", node.kwargs.get("axis", default)))
        if not isinstance(given, int):
            raise Unfollowed("doesn't say over which axis it works")
        return given % ndim

    def place(self, path: str, axis: int, labels: Tensor | None, role: Role) -> None:
        """Notes the units along an axis of a stored tensor. A tensor that is used twice has the same ones each time."""
        tensor = self._stored(path)
        name = self._names.get(id(tensor))
        if name is None:
            self.found.labels.freeze(labels, f"{path} goes with them, and isn't saved with the network")
            return
        labels = torch.zeros(tensor.shape[axis], dtype=torch.int64) if labels is None else labels
        before = self.found.places.get((name, axis))
        if before is None:
            self.found.places[name, axis] = Place(labels, role, role == "consumes", tensor.numel() // len(labels))
            return
        self.found.labels.join(before.labels, labels, f"{name} is used in several places, in one of them uncut")
        before.role = min(before.role, role, key=ROLES.index)
        before.read |= role == "consumes"

    def _stored(self, path: str) -> Tensor:
        found: Tensor = operator.attrgetter(path)(self.module)
        return found

    def _stored_axes(self, path: str, value: Any) -> Any:
        """Returns the labels of a tensor that the model's code names: its own ones, which follow what they meet."""
        name = self._names.get(id(value))
        if not isinstance(value, Tensor) or name is None:
            return nothing(value)
        for axis, size in enumerate(value.shape):
            if (name, axis) not in self.found.places and size > 1:
                self.place(path, axis, self.found.labels.fresh(size, loose=True), "follows")
        known = [self.found.places.get((name, axis)) for axis in range(value.ndim)]
        return tuple(None if place is None else place.labels for place in known)

    def made(self, module: str, path: str, axis: int, number: int) -> Tensor:
        """Returns the labels of the units that a module makes: new ones at its first call."""
        name = self._names.get(id(self._stored(path)), path)
        self.found.made.setdefault(name, module)
        self.found.uses[name] += 1
        before = self.found.places.get((name, axis))
        labels = self.found.labels.fresh(number) if before is None else before.labels
        if number == 1:
            self.found.labels.freeze(labels, "it is the only one of its layer")
        return labels

    def reads(self, module: str, columns: Tensor) -> None:
        """Notes a module that reads units through its matrix, once."""
        if all(name != module for name, _ in self.found.readers):
            self.found.readers.append((module, columns))

    def applied(self, module: str, shape: Sequence[int], axes: Axes, channels: int) -> None:
        """Notes at how many places a layer's weight is applied.

        Args:
            module: The layer.
            shape: Of what it gives, or of what it reads if each place of that meets the whole kernel.
            axes: The labels of that.
            channels: Which axis is summed over or made.
        """
        others = [axis for axis in range(len(shape)) if axis != channels]
        plain = prod(shape[axis] for axis in others if axes[axis] is None)
        labelled = tuple(labels for axis in others if (labels := axes[axis]) is not None)
        self.found.applied.append((module, plain / self.found.examples, labelled))
