"""A network whose structure was found by tracing it, and its unit groups."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from secateur.errors import UsageError
from secateur.network.family import Layout
from secateur.network.graph.rules import CONVOLUTIONS, rule_of
from secateur.network.graph.tracing import Decision, check_inputs, evaluating, traced
from secateur.network.graph.walker import Edit, Found, Walker
from secateur.network.network import Layer
from secateur.network.reshaped import describe
from secateur.network.units import Reader, Slice, UnitGroup


@dataclass(frozen=True)
class Fixed:
    """Units that can't be cut.

    Attributes:
        name: The module that makes them.
        count: How many they are.
        reason: Why.
    """

    name: str
    count: int
    reason: str


class GraphNetwork:
    """Any network, with what tracing it says of its units.

    Attributes:
        model: The network. It isn't changed.
        device: Where it is computed.
        inputs: Example inputs.
        groups: Units that can be cut, in the order of computation.
        fixed: Those that can't.
    """

    store = None

    def __init__(
        self,
        model: nn.Module,
        example_inputs: Any,
        leaf_modules: Sequence[type[nn.Module] | str] = (),
        keep_class: bool = False,
    ) -> None:
        """Traces a network.

        Args:
            model: The network.
            example_inputs: What it takes: a tensor, or a tuple of arguments.
            leaf_modules: Modules, by kind or name, that aren't looked into.
            keep_class: Whether a smaller network has to be of the same class: units that are counted by constants in
                its code can't be cut then.

        Raises:
            UsageError: The network doesn't take the example inputs.
            ModelError: It can't be traced; the message says where.
        """
        self.model = model
        self.inputs = example_inputs if isinstance(example_inputs, tuple) else (example_inputs,)
        self.device = next(model.parameters()).device
        self.leaf_modules = tuple(leaf_modules)
        with evaluating(model), torch.no_grad():
            check_inputs(model, self.inputs)
            module, decisions = traced(model, self.inputs, leaf_modules)
            walker = Walker(module, rule_of)
            walker.run(*self.inputs)
        self.found: Found = walker.found
        _freeze_constants(walker, decisions, keep_class)
        self._tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        self.groups, self.fixed = _groups(self)

    @property
    def architecture(self) -> str:
        """The model's class name."""
        return type(self.model).__name__

    def tensor(self, name: str) -> Tensor:
        """Returns a parameter or a buffer by its full name."""
        return self._tensors[name].detach()

    def layer(self, name: str) -> Layer:
        """Returns a linear or convolutional layer."""
        module = self.model.get_submodule(name)
        parameter = module.weight
        assert isinstance(parameter, nn.Parameter)
        return Layer(name, parameter, Layout.OUT_IN, name, module)

    @contextmanager
    def resident(self, block: int | None) -> Iterator[None]:
        """All weights are in memory."""
        yield

    def visit(self, layers: Iterable[Layer]) -> Iterator[Layer]:
        """Yields layers; all weights are in memory."""
        yield from layers

    def parameters(self) -> int:
        """Returns the number of parameters."""
        return sum(parameter.numel() for parameter in self.model.parameters())


def _freeze_constants(walker: Walker, decisions: Sequence[Decision], keep_class: bool) -> None:
    """Freezes units whose number the code decides by, and those whose number in the code can't be changed.

    It can't where a traced module would take the network's place: what was decided by the example would stand in it.
    """
    nodes = {node.name: node for node in walker.axes}
    for one in decisions:
        axes = walker.axes[nodes[one.node.name]]
        walker.freeze(axes[one.axis], f"{one.place} decides by how many they are")
    if decisions or keep_class:
        for edit in walker.found.edits:
            walker.freeze(_labels_in(edit.value), f"their number is a constant in the code, at {edit.node}")
        walker.found.edits.clear()


def _labels_in(value: Any) -> Any:
    """Returns an edit's value with pairs in the place of slices."""
    if isinstance(value, tuple | list):
        return [_labels_in(one) for one in value]
    return (value.start, value.stop) if isinstance(value, slice) else value


def _groups(network: GraphNetwork) -> tuple[list[UnitGroup], list[Fixed]]:
    """Gathers units that have the same slices; those that are frozen are listed with the reason."""
    found = network.found
    roots = {key: found.labels.roots(place.labels) for key, place in found.places.items()}
    members: dict[int, dict[tuple[str, int], list[int]]] = defaultdict(dict)
    for key, labels in roots.items():
        for position, label in enumerate(labels.tolist()):
            if label:
                members[label].setdefault(key, []).append(position)
    alike: dict[tuple[tuple[str, int, int], ...], list[int]] = defaultdict(list)
    fixed: dict[tuple[str, str], int] = defaultdict(int)
    for label, places in members.items():
        producer = _producer(network, places)
        if producer is None:
            continue
        reason = found.labels.reasons.get(found.labels.root(label))
        if reason is not None:
            fixed[producer, reason] += 1
        else:
            alike[tuple(sorted((name, axis, len(at)) for (name, axis), at in places.items()))].append(label)
    order = {module: place for place, module in enumerate(found.order)}
    groups = []
    for some in alike.values():
        first = _first(network, members[some[0]])
        some.sort(key=lambda label: min(members[label][first]))
        groups.append(_group(network, some, members))
    groups.sort(key=lambda group: order[group.name.rpartition("/")[0].partition("#")[0]])
    groups = _numbered(groups)
    lists = [Fixed(name, count, reason) for (name, reason), count in fixed.items()]
    return groups, sorted(lists, key=lambda one: order[one.name])


def _first(network: GraphNetwork, places: dict[tuple[str, int], list[int]]) -> tuple[str, int]:
    """Returns the first tensor that makes some units."""
    order = {module: place for place, module in enumerate(network.found.order)}
    made = [key for key in places if network.found.places[key].role == "produces" and _module(key[0]) in order]
    return min(made, key=lambda key: (order[_module(key[0])], key))


def _module(tensor: str) -> str:
    return tensor.rpartition(".")[0]


def _producer(network: GraphNetwork, places: dict[tuple[str, int], list[int]]) -> str | None:
    made = [key for key in places if network.found.places[key].role == "produces"]
    return _module(_first(network, places)[0]) if made else None


def _group(
    network: GraphNetwork, labels: Sequence[int], members: dict[int, dict[tuple[str, int], list[int]]]
) -> UnitGroup:
    first = members[labels[0]]
    producer = _producer(network, first)
    assert producer is not None
    parts: dict[str, list[Slice]] = {"produces": [], "consumes": [], "follows": []}
    for key in first:
        index = torch.tensor([members[label][key] for label in labels])
        parts[network.found.places[key].role].append(Slice(*key, index))
    kind = _kind(network.model.get_submodule(producer))
    return UnitGroup(
        name=f"{producer}/{kind}",
        unit=kind,
        count=len(labels),
        block=None,
        produces=tuple(parts["produces"]),
        consumes=tuple(parts["consumes"]),
        follows=tuple(parts["follows"]),
        readers=tuple(_readers(network, labels)),
        network=network,  # type: ignore[arg-type]
    )


def _kind(module: nn.Module) -> str:
    if isinstance(module, CONVOLUTIONS):
        return "filter"
    return "hidden" if isinstance(module, nn.RNNBase) else "neuron"


def _readers(network: GraphNetwork, labels: Sequence[int]) -> Iterator[Reader]:
    """Yields the layers that read units through their matrix, with each unit's columns of it."""
    wanted = {label: place for place, label in enumerate(labels)}
    for name, columns in network.found.readers:
        at: list[list[int]] = [[] for _ in labels]
        for column, label in enumerate(network.found.labels.roots(columns).tolist()):
            if label in wanted:
                at[wanted[label]].append(column)
        if at[0]:
            yield Reader(network.layer(name), torch.tensor(at))


def _numbered(groups: Sequence[UnitGroup]) -> list[UnitGroup]:
    """Gives groups of the same producer different names."""
    seen: dict[str, int] = defaultdict(int)
    found = []
    for group in groups:
        seen[group.name] += 1
        name = group.name if seen[group.name] == 1 else f"{group.name}#{seen[group.name]}"
        object.__setattr__(group, "name", name)
        found.append(group)
    return found


def cut_graph(network: GraphNetwork, keep: Mapping[str, Tensor]) -> nn.Module:
    """Returns a smaller copy of a network: of its own class, or a traced one where its code has sizes as constants.

    Args:
        network: The network; it isn't changed.
        keep: (units,) bool, by the name of a group.

    Raises:
        UsageError: A tensor would lose all of its units.
    """
    stays = {key: torch.ones(len(place.labels), dtype=torch.bool) for key, place in network.found.places.items()}
    for group in _reduced(network, keep):
        for part in group.slices:
            stays[part.name, part.axis][part.index[~keep[group.name]].flatten()] = False
    for (name, axis), places in stays.items():
        if not bool(places.any()):
            raise UsageError(f"{name} would lose all of its {len(places)} units on axis {axis}; keep at least one.")
    small = copy.deepcopy(network.model)
    for (name, axis), places in stays.items():
        if not bool(places.all()):
            _shrink(small, name, axis, places)
    for module in small.modules():
        describe(module)
    return with_constants(small, constants(network, keep), network.inputs, network.leaf_modules)


def _reduced(network: GraphNetwork, keep: Mapping[str, Tensor]) -> list[UnitGroup]:
    return [group for group in network.groups if group.name in keep and not bool(keep[group.name].all())]


def constants(network: GraphNetwork, keep: Mapping[str, Tensor]) -> list[Edit]:
    """Returns the constants in a network's code that count units which go, with their new values."""
    gone: set[int] = set()
    for group in _reduced(network, keep):
        part = group.produces[0]
        labels = network.found.places[part.name, part.axis].labels[part.index[~keep[group.name]][:, 0]]
        gone |= set(network.found.labels.roots(labels).tolist())
    return [
        Edit(edit.node, edit.position, _counted(network, edit.value, gone))
        for edit in network.found.edits
        if _changes(network, edit.value, gone)
    ]


def with_constants(
    model: nn.Module, edits: Sequence[Edit], inputs: tuple[Any, ...], leaf_modules: Sequence[type[nn.Module] | str]
) -> nn.Module:
    """Returns a model with other numbers in its code: a traced one that has its modules, or itself without edits."""
    if not edits:
        return model
    module, _ = traced(model, inputs, leaf_modules)
    nodes = {node.name: node for node in module.graph.nodes}
    for edit in edits:
        node, value = nodes[edit.node], fx.map_arg(edit.value, lambda old: nodes[old.name])
        if isinstance(edit.position, int):
            node.update_arg(edit.position, value)
        else:
            node.update_kwarg(edit.position, value)
    module.recompile()
    return module


def _shrink(model: nn.Module, name: str, axis: int, places: Tensor) -> None:
    path, _, attribute = name.rpartition(".")
    module = model.get_submodule(path)
    old = getattr(module, attribute)
    new = old.detach().index_select(axis, places.nonzero().flatten().to(old.device)).clone()
    if isinstance(old, nn.Parameter):
        setattr(module, attribute, nn.Parameter(new, requires_grad=old.requires_grad))
    else:
        setattr(module, attribute, new)


def _changes(network: GraphNetwork, value: Any, gone: set[int]) -> bool:
    if isinstance(value, Tensor):
        return bool(set(network.found.labels.roots(value).tolist()) & gone)
    if isinstance(value, slice):
        return _changes(network, (value.start, value.stop), gone)
    return isinstance(value, tuple | list) and any(_changes(network, one, gone) for one in value)


def _counted(network: GraphNetwork, value: Any, gone: set[int]) -> Any:
    if isinstance(value, Tensor):
        return sum(label not in gone for label in network.found.labels.roots(value).tolist())
    if isinstance(value, slice):
        return slice(_counted(network, value.start, gone), _counted(network, value.stop, gone), value.step)
    if isinstance(value, tuple | list):
        return type(value)(_counted(network, one, gone) for one in value)
    return value
