"""Makes a smaller network of what stays."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn

from secateur.errors import UsageError
from secateur.network.graph.tracing import traced
from secateur.network.graph.walker import Edit
from secateur.network.reshaped import describe
from secateur.network.unit_group import UnitGroup

if TYPE_CHECKING:
    from secateur.network.graph.network import GraphNetwork

FIELDS = (
    *("in_features", "out_features", "in_channels", "out_channels", "groups", "num_features", "num_channels"),
    *("normalized_shape", "num_parameters", "hidden_size", "input_size", "embedding_dim"),
)  # attributes of modules that say the shapes of their weights


def cut_graph(network: GraphNetwork, keep: Mapping[str, Tensor]) -> nn.Module:
    """Returns a smaller copy of a network: of its own class, or a traced one where its code has sizes as constants.

    Args:
        network: The network; it isn't changed.
        keep: (units,) bool, by the name of a group.

    Raises:
        UsageError: A tensor would lose all of its units.
    """
    stays = {key: torch.ones(len(place.labels), dtype=torch.bool) for key, place in network.found.places.items()}
    for group in reduced(network, keep):
        for part in group.slices:
            stays[part.name, part.axis][part.index[~keep[group.name]].flatten()] = False
    for (name, axis), places in stays.items():
        if len(places) and not bool(places.any()):
            raise UsageError(f"{name} would lose all of its {len(places)} units on axis {axis}; keep at least one.")
    small = copy.deepcopy(network.model)
    new: dict[str, Tensor] = {}
    for (name, axis), places in stays.items():
        if not bool(places.all()):
            old = new.get(name, network.tensor(name))
            new[name] = old.index_select(axis, places.nonzero().flatten().to(old.device))
    new = {alias: tensor for name, tensor in new.items() for alias in network.aliases[name]}
    replace_tensors(small, new)
    gone = gone_units(network, keep)
    for name, (attribute, axes) in network.found.widths.items():
        _widen(network, small.get_submodule(name), attribute, axes, gone)
    for path in {name.rpartition(".")[0] for name in new}:
        describe(small.get_submodule(path))
    return with_constants(small, constants(network, keep), network.inputs, network.leaf_modules)


def reduced(network: GraphNetwork, keep: Mapping[str, Tensor]) -> list[UnitGroup]:
    """Returns the groups that lose units."""
    return [group for group in network.groups if group.name in keep and not bool(keep[group.name].all())]


def gone_units(network: GraphNetwork, keep: Mapping[str, Tensor]) -> set[int]:
    """Returns the units that go."""
    gone: set[int] = set()
    for group in reduced(network, keep):
        part = group.produces[0]
        labels = network.found.places[part.name, part.axis].labels[part.index[~keep[group.name]][:, 0]]
        gone |= set(network.found.labels.roots(labels).tolist())
    return gone


def stay(network: GraphNetwork, labels: Tensor, gone: set[int]) -> Tensor:
    """Returns (places,) bool: which places are left when some units go."""
    return ~torch.isin(network.found.labels.roots(labels), torch.tensor(sorted(gone), dtype=torch.int64))


def constants(network: GraphNetwork, keep: Mapping[str, Tensor]) -> list[Edit]:
    """Returns the constants in a network's code that count units which go, with their new values."""
    gone = gone_units(network, keep)
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
    steps = traced(model, inputs, leaf_modules)
    module = steps.module
    nodes = {node.name: node for node in module.graph.nodes}
    for edit in edits:
        _set(nodes[edit.node], edit.position, fx.map_arg(edit.value, lambda old: nodes[old.name]))
    _keep_all(model, module)
    there = dict(module.named_modules())
    for name, position, path in steps.flags:
        with module.graph.inserting_before(nodes[name]):
            mode = f"{path}.training" if path and path in there else "training"
            _set(nodes[name], position, module.graph.create_node("get_attr", mode))
    module.recompile()
    for name, one in module.named_modules():
        one.training = model.get_submodule(name).training
    return module


def _set(node: fx.Node, position: int | str, value: Any) -> None:
    if isinstance(position, int):
        node.update_arg(position, value)
    else:
        node.update_kwarg(position, value)


def _keep_all(model: nn.Module, module: fx.GraphModule) -> None:
    """Has a traced module have what its model has and doesn't use."""
    there = dict(module.named_modules())
    for name, part in model.named_modules():
        if name not in there:
            module.add_submodule(name, part)
            there |= {f"{name}.{inner}" if inner else name: one for inner, one in part.named_modules()}
    for name, part in model.named_modules():
        for own, tensor in (*part.named_parameters(recurse=False), *part.named_buffers(recurse=False)):
            if not hasattr(there[name], own):
                if isinstance(tensor, nn.Parameter):
                    there[name].register_parameter(own, tensor)
                else:
                    there[name].register_buffer(own, tensor, own not in part._non_persistent_buffers_set)


def replace_tensors(model: nn.Module, new: Mapping[str, Tensor]) -> None:
    """Has a model hold tensors of other shapes, by their names; those that were one tensor stay one."""
    made: dict[int, Tensor] = {}
    olds = []
    for name, tensor in new.items():
        path, _, attribute = name.rpartition(".")
        module = model.get_submodule(path)
        old = getattr(module, attribute)
        olds.append(old)  # so that no other tensor gets its id
        if id(old) not in made:
            plain = tensor.detach().to(old.device, old.dtype).clone()
            made[id(old)] = nn.Parameter(plain, old.requires_grad) if isinstance(old, nn.Parameter) else plain
        setattr(module, attribute, made[id(old)])


def _widen(network: GraphNetwork, module: Any, attribute: str, axes: Iterable[Tensor | None], gone: set[int]) -> None:
    """Has a module say how many units it is for."""
    old = getattr(module, attribute)
    sizes = old if isinstance(old, tuple) else (old,)
    left = tuple(
        size if labels is None else int(stay(network, labels, gone).sum())
        for labels, size in zip(axes, sizes, strict=True)
    )
    setattr(module, attribute, left if isinstance(old, tuple) else left[0])


def fields(model: nn.Module) -> dict[str, dict[str, Any]]:
    """Returns what modules say of the shapes of their weights, by module and attribute."""
    found = {
        name: {
            field: getattr(module, field) for field in FIELDS if isinstance(getattr(module, field, None), int | tuple)
        }
        for name, module in model.named_modules()
    }
    return {name: some for name, some in found.items() if some}


def _changes(network: GraphNetwork, value: Any, gone: set[int]) -> bool:
    if isinstance(value, Tensor):
        return not bool(stay(network, value, gone).all())
    if isinstance(value, slice):
        return _changes(network, (value.start, value.stop), gone)
    return isinstance(value, tuple | list) and any(_changes(network, one, gone) for one in value)


def _counted(network: GraphNetwork, value: Any, gone: set[int]) -> Any:
    if isinstance(value, Tensor):
        return int(stay(network, value, gone).sum())
    if isinstance(value, slice):
        return slice(_counted(network, value.start, gone), _counted(network, value.stop, gone), value.step)
    if isinstance(value, tuple | list):
        return type(value)(_counted(network, one, gone) for one in value)
    return value
