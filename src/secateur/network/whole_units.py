"""Units of the whole model: residual channels, tokens, blocks and halves of them, experts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch

from secateur.network.family import Layout
from secateur.network.inner_units import head_dim, heads_of
from secateur.network.network import Network
from secateur.network.plain import plain_class, plain_config
from secateur.network.unit_group import Halves, Reader, Slice, UnitGroup, namer, span

INNER_COLUMNS = (
    "head",
    "cross head",
    "neuron",
    "expert neuron",
    "position",
)  # of a block's weights: what isn't the hidden states


def _moving_axes(network: Network, **changes: int) -> dict[str, list[int]]:
    """Returns the axes of each parameter that change with config fields, found by building the model both ways.

    The models are built without memory for their weights.
    """
    shapes = []
    for fields in ({}, changes):
        config = plain_config(network.model.config)
        for name, value in fields.items():
            setattr(config, name, value)
        with torch.device("meta"), torch.random.fork_rng(devices=[]):
            model = plain_class(network.model)(config)
        shapes.append({name: parameter.shape for name, parameter in model.named_parameters()})
    before, after = shapes
    moving = {
        name: [axis for axis, (a, b) in enumerate(zip(before[name], after[name], strict=True)) if a != b]
        for name in before
    }
    there = {name for name, _ in network.model.named_parameters()}  # without the halves that were removed
    return {name: axes for name, axes in moving.items() if axes and name in there}


def channels(network: Network) -> Iterable[UnitGroup]:
    """Yields the one group of residual channels."""
    hidden = network.dimension("hidden")
    assert hidden is not None
    fields = network.family.config
    changes = {fields["hidden"]: 2 * hidden}
    for name in network.family.with_hidden:
        if getattr(network.model.config, name) == hidden:
            changes[name] = 2 * hidden
    if network.family.tied_width and "head_dim" in fields:  # XLNet
        changes[fields["head_dim"]] = 2 * head_dim(network)
    roles = _channel_roles(network)
    index = span(0, hidden, 1)
    parts: dict[str, list[Slice]] = {"produces": [], "consumes": [], "follows": [], "other": []}
    for name, axes in _moving_axes(network, **changes).items():
        for axis in axes:
            parts[roles.get((name, axis), "follows")].append(Slice(name, axis, index))
    yield UnitGroup(
        name="model/channel",
        unit="channel",
        count=hidden,
        block=None,
        produces=tuple(parts["produces"]),
        consumes=tuple(parts["consumes"]),
        follows=tuple(parts["follows"]),
        readers=tuple(
            Reader(layer, index)
            for block in range(len(network.blocks))
            for projection, layer in network.described_layers(block)
            if projection.columns not in INNER_COLUMNS
        ),
        network=network,
    )


def _channel_roles(network: Network) -> dict[tuple[str, int], str]:
    """Returns what the axes of weights have to do with channels, by tensor and axis.

    `other` are axes that count heads, neurons or places of positions, though they may be as long as the hidden states
    are wide.
    """
    name_of = namer(network)
    roles = {(f"{path}.weight", 1): "consumes" for path in network.family.heads}
    roles |= {(f"{network.prefix}{path}.weight", 1): "produces" for path in network.family.embeddings}
    for block in range(len(network.blocks)):
        prefix = network.block_name(block)
        roles |= {(f"{prefix}.{path}", axis): "other" for path, _ in network.family.head_tensors for axis in range(3)}
        for projection, layer in network.described_layers(block):
            every = set(range(layer.parameter.ndim))
            rows = {0} if layer.layout is Layout.OUT_IN else every - {0}
            columns = every - rows
            if layer.expert is not None:
                rows, columns = {1}, {2}
            stored, bias = name_of(layer.parameter), getattr(layer.module, "bias", None)
            out = "produces" if "residual" in projection.rows else "other"
            roles |= {(stored, axis): out for axis in rows}
            if bias is not None:
                roles[name_of(bias), 0] = out
            read = "other" if projection.columns in INNER_COLUMNS else "consumes"
            roles |= {(stored, axis): read for axis in columns}
    return roles


def tokens(network: Network) -> Iterable[UnitGroup]:
    """Yields the one group of vocabulary rows."""
    vocabulary = network.dimension("vocabulary")
    assert vocabulary is not None
    moving = _moving_axes(network, **{network.family.config["vocabulary"]: 2 * vocabulary})
    index = span(0, vocabulary, 1)
    tables = {f"{network.prefix}{path}.weight" for path in network.family.embeddings}
    slices = {name: Slice(name, axis, index) for name, axes in moving.items() for axis in axes}
    yield UnitGroup(
        name="model/token",
        unit="token",
        count=vocabulary,
        block=None,
        produces=tuple(part for name, part in slices.items() if name in tables),
        consumes=tuple(part for name, part in slices.items() if name not in tables),
        network=network,
    )


def layers(network: Network) -> Iterable[UnitGroup]:
    names = [network.block_name(block) + "." for block in range(len(network.blocks))]
    parameters = [name for name, _ in network.model.named_parameters()]
    whole = tuple(tuple(name for name in parameters if name.startswith(prefix)) for prefix in names)
    yield UnitGroup("model/layer", "layer", len(whole), None, (), (), network, whole=whole)


def half_names(network: Network, block: int, half: str) -> tuple[str, ...]:
    """Returns the names of the tensors that go when a block loses its attention or its MLP."""
    prefix = network.block_name(block)
    paths = [f"{prefix}.{path}." for path in replacements(network, half, block)]
    if not network.family.without[half]:
        group = next(group for group in heads_of(network) if group.block == block)
        return tuple(dict.fromkeys(part.name for part in group.slices))
    parameters = (name for name, _ in network.model.named_parameters())
    return tuple(name for name in parameters if name.startswith(tuple(paths)))


def replacements(network: Network, half: str, block: int) -> Mapping[str, str]:
    """Returns what stands in place of which module of a block when a half of it goes."""
    module = network.blocks[block]
    there = {name for name, _ in module.named_modules()}
    without = network.stack_of(block).without or network.family.without
    found = {path: kind for path, kind in without[half].items() if path in there}
    before = network.family.pre_norm
    if before is not None and not getattr(network.model.config, before):
        return {path: kind for path, kind in found.items() if "norm" not in path}
    return found


def halves(half: str) -> Callable[[Network], Iterable[UnitGroup]]:
    columns = "head" if half == "attention" else "neuron"

    def groups(network: Network) -> Iterable[UnitGroup]:
        if half not in network.family.without:
            return
        there = [
            block
            for block in range(len(network.blocks))
            if any(p.columns.endswith(columns) and layer.shape[1] for p, layer in network.described_layers(block))
        ]
        whole = tuple(half_names(network, block, half) for block in there)
        if there:
            yield Halves(f"model/{half}", half, len(whole), None, (), (), network, whole=whole, blocks=tuple(there))

    return groups


def experts(network: Network) -> Iterable[UnitGroup]:
    """Yields each block's experts; the rows of the router that choose them go along."""
    if network.family.experts is None:
        return
    for block in range(len(network.blocks)):
        prefix = network.block_name(block)
        if all(layer.expert is None for layer in network.block_layers(block)):
            continue
        parts = []
        for path, axis in network.family.expert_tensors:
            name = f"{prefix}.{path}"
            count = network.model.get_parameter(name).shape[axis]
            parts.append(Slice(name, axis, span(0, count, 1)))
        yield UnitGroup(f"{prefix}/expert", "expert", count, block, tuple(parts), (), network)
