"""Units: what can be removed as one piece, and every tensor slice that goes with it.

Neurons, heads, channels and vocabulary rows differ in the slices that they list and in nothing else. Layers and
halves of layers are whole tensors; they are listed by name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from secateur.errors import UsageError, did_you_mean
from secateur.network.family import Layout, Projection
from secateur.network.network import Layer, Network
from secateur.network.plain import plain_class, plain_config

NEURON_ROWS = ("neuron", "gate", "up")
INNER_COLUMNS = (
    "head",
    "cross head",
    "neuron",
    "expert neuron",
    "position",
)  # of a block's weights: what isn't the hidden states


@dataclass(frozen=True)
class Slice:
    """What belongs to a group's units in one tensor.

    Attributes:
        name: The tensor's full name in the model; the first of its names where it is tied.
        axis: The stored axis that counts units.
        index: (units, width) int64, each unit's places along the axis.
    """

    name: str
    axis: int
    index: Tensor


@dataclass(frozen=True)
class Reader:
    """A linear layer that reads a group's units.

    Attributes:
        layer: The layer.
        index: (units, width) int64, each unit's columns of `layer.matrix()`.
    """

    layer: Layer
    index: Tensor


@dataclass(frozen=True)
class UnitGroup:
    """All units of one kind at one place.

    Attributes:
        name: Where: `model.layers.0/neuron`, or `model/layer` for what isn't inside a block.
        unit: The kind.
        count: How many units there are.
        block: Index of the block; None for what concerns the whole model.
        produces, consumes: Slices of tensors that compute the units and that read them.
        follows: Slices that merely have a place per unit (a norm's weight, a table of positions).
        readers: The linear layers among the consumers.
        whole: By unit: names of tensors that go as a whole, for layers and halves.
        network: Where the tensors are.
        shared: Groups of the same name here lose the same units (T5's blocks share the biases of positions by head).
    """

    name: str
    unit: str
    count: int
    block: int | None
    produces: tuple[Slice, ...]
    consumes: tuple[Slice, ...]
    network: Network = field(repr=False, compare=False)
    follows: tuple[Slice, ...] = ()
    readers: tuple[Reader, ...] = ()
    whole: tuple[tuple[str, ...], ...] = ()
    shared: str | None = None

    @property
    def slices(self) -> tuple[Slice, ...]:
        """All slices that go with a unit."""
        return (*self.produces, *self.consumes, *self.follows)

    @property
    def weights(self) -> list[Slice]:
        """The coupled slices of weights, producers first; no biases, norms or tables."""
        return [part for part in (*self.produces, *self.consumes) if self.tensor(part.name).ndim > 1]

    def tensor(self, name: str) -> Tensor:
        """Returns a parameter or a buffer by its full name."""
        module, _, attribute = name.rpartition(".")
        found: Tensor = getattr(self.network.model.get_submodule(module), attribute)
        return found.detach()

    def vectors(self, part: Slice) -> Tensor:
        """Returns (units, length) float32: what a slice holds of each unit, flattened."""
        tensor = self.tensor(part.name).movedim(part.axis, 0)
        taken = tensor[part.index.to(tensor.device)]  # (units, width, ...)
        return taken.flatten(1).float()

    def matrices(self) -> list[Tensor]:
        """Returns (units, length) float32 for every coupled tensor of weights, producers first; no norms or tables."""
        if self.whole:
            rows = [torch.cat([self.tensor(name).flatten().float() for name in names]) for names in self.whole]
            return [nn.utils.rnn.pad_sequence(rows, batch_first=True)]
        return [self.vectors(part) for part in self.weights]

    def parameters_each(self) -> Tensor:
        """Returns (units,) int64: how many parameters go with each unit."""
        if self.whole:
            return torch.tensor([sum(self.tensor(name).numel() for name in names) for names in self.whole])
        total = torch.zeros(self.count, dtype=torch.int64)
        known = dict(self.network.model.named_parameters())  # a norm's running statistics aren't parameters
        for part in self.slices:
            if part.name not in known:
                continue
            tensor = known[part.name]
            total += part.index.shape[1] * (tensor.numel() // tensor.shape[part.axis])
        return total


def unit_groups(network: Network, unit: str) -> list[UnitGroup]:
    """Returns a model's groups of one kind of unit, in forward order.

    Raises:
        UsageError: The kind is unknown, or this model has none of it.
    """
    if network.factorized:
        raise UsageError("units can't be cut from a model that is factorized; remove them before, and factorize after.")
    if unit not in UNITS:
        raise UsageError(f"unknown unit '{unit}'.{did_you_mean(unit, [*UNITS, 'weight'])}")
    groups = list(UNITS[unit](network))
    if not groups:
        there = ", ".join(kind for kind in UNITS if _has(network, kind))
        raise UsageError(f"{network.architecture} has no units of the kind '{unit}', only {there}.")
    return groups


def _has(network: Network, unit: str) -> bool:
    try:
        return any(True for _ in UNITS[unit](network))
    except UsageError:
        return False


def head_dim(network: Network, block: int = 0) -> int:
    """Returns the width of an attention head of a block."""
    stack = network.stack_of(block)
    explicit = network.dimension("head_dim", stack)
    if explicit is not None:
        return explicit
    hidden, heads = network.dimension("hidden"), network.dimension("heads", stack)
    assert hidden is not None
    assert heads is not None
    return hidden // heads


def _span(start: int, units: int, width: int) -> Tensor:
    """Returns (units, width): consecutive places from `start` on."""
    return start + torch.arange(units * width).reshape(units, width)


def _row_parts(projection: Projection, layer: Layer, sizes: Mapping[str, int]) -> dict[str, tuple[int, int]]:
    """Returns where each of a fused weight's parts begins among its rows, and how many rows it has."""
    parts, start = {}, 0
    for name in projection.rows:
        size = sizes.get(name, layer.shape[0] // len(projection.rows))
        parts[name] = (start, size)
        start += size
    return parts


def _rows(layer: Layer, index: Tensor, name: Callable[[Tensor], str]) -> list[Slice]:
    """Returns the slices of a layer's rows: its weight's, and its bias's where it has one."""
    axis = 0 if layer.layout is Layout.OUT_IN else layer.parameter.ndim - 1
    found = [Slice(layer.name + (".weight" if layer.module is not None else ""), axis, index)]
    bias = getattr(layer.module, "bias", None)
    if bias is not None:
        found.append(Slice(name(bias), 0, index))
    return found


def _columns(layer: Layer, index: Tensor) -> Slice:
    axis = 1 if layer.layout is Layout.OUT_IN else 0
    return Slice(layer.name + (".weight" if layer.module is not None else ""), axis, index)


def _neurons(network: Network) -> Iterable[UnitGroup]:
    """Yields each MLP's hidden features; the experts of a block lose the same ones, as they are stored together."""
    name_of = _namer(network)
    for block in range(len(network.blocks)):
        found = network.described_layers(block)
        readers = [layer for projection, layer in found if projection.columns.endswith("neuron")]
        if not readers or 0 in readers[0].shape:
            continue
        count = readers[0].shape[1]
        index = _span(0, count, 1)
        produces: list[Slice] = []
        for projection, layer in found:
            for part, (start, _) in _row_parts(projection, layer, {}).items():
                rows = _span(start, count, 1)
                if part in NEURON_ROWS and layer.expert is None:
                    produces += _rows(layer, rows, name_of)
                elif part in NEURON_ROWS and layer.expert == 0:  # all experts' rows are one tensor
                    produces.append(Slice(name_of(layer.parameter), 1, rows))
        consumes = {
            name_of(layer.parameter): Slice(name_of(layer.parameter), 2, index)
            if layer.expert is not None
            else _columns(layer, index)
            for layer in readers
        }
        yield UnitGroup(
            name=f"{network.block_name(block)}/neuron",
            unit="neuron",
            count=count,
            block=block,
            produces=_merged(produces),
            consumes=tuple(consumes.values()),
            readers=tuple(Reader(layer, index) for layer in readers),
            network=network,
        )


def _heads(network: Network, grouped: bool = True) -> Iterable[UnitGroup]:
    """Yields attention heads: whole KV groups, or single query heads by their place in each KV group."""
    name_of = _namer(network)
    for block in range(len(network.blocks)):
        found = network.described_layers(block)
        for columns in ("head", "cross head"):
            cross = columns.removesuffix("head")
            outputs = [layer for projection, layer in found if projection.columns == columns]
            inputs = [(one, layer) for one, layer in found if {r.removeprefix(cross) for r in one.rows} & {*"qkvr"}]
            inputs = [(one, layer) for one, layer in inputs if one.rows[0].startswith("cross") == bool(cross)]
            if outputs and outputs[0].shape[1]:
                yield _attention(network, block, cross, inputs, outputs, grouped, name_of)


def _attention(
    network: Network,
    block: int,
    cross: str,
    inputs: list[tuple[Projection, Layer]],
    outputs: list[Layer],
    grouped: bool,
    name_of: Callable[[Tensor], str],
) -> UnitGroup:
    """Returns the heads of one attention.

    Args:
        network: The model.
        block: The block's index.
        cross: `cross ` for the attention to the encoder's output, else empty.
        inputs: The projections that make queries, keys and values.
        outputs: Those that read the heads.
        grouped: Whether a KV group is one unit.
        name_of: Gives a tensor's name.
    """
    width = head_dim(network, block)
    heads = outputs[0].shape[1] // width
    kv_heads = _kv_heads(inputs, heads, width, cross)
    query = torch.arange(heads * width).reshape(kv_heads, heads // kv_heads, width)
    query = query.flatten(1) if grouped else query.transpose(0, 1).flatten(1)
    single = _span(0, kv_heads, width)
    produces: list[Slice] = []
    for projection, layer in inputs:
        if layer.parameter.ndim == 3:  # (hidden, heads, head_dim)
            produces.append(Slice(layer.name, 1, _span(0, heads, 1)))
            continue
        if projection.per_head:
            produces += _rows(layer, _span(0, heads, width * len(projection.rows)), name_of)
            continue
        sizes = {f"{cross}q": heads * width, f"{cross}k": kv_heads * width, f"{cross}v": kv_heads * width}
        for part, (start, _) in _row_parts(projection, layer, sizes).items():
            if part == f"{cross}q":
                produces += _rows(layer, start + query, name_of)
            elif grouped:
                produces += _rows(layer, start + single, name_of)
    prefix = network.block_name(block)
    shared = None
    if not cross:
        every = {name for name, _ in network.model.named_parameters()} if network.family.head_tensors else set()
        for path, axis in network.family.head_tensors:
            if f"{prefix}.{path}" in every:
                produces.append(Slice(f"{prefix}.{path}", axis, _span(0, heads, 1)))
        if network.stack_of(block).carries:
            shared = f"{network.stack_of(block).name}/head"
    consumes = [
        Slice(layer.name, 1, _span(0, heads, 1)) if layer.parameter.ndim == 3 else _columns(layer, query)
        for layer in outputs
    ]
    return UnitGroup(
        name=f"{prefix}/{cross}{'head' if grouped else 'query-head'}",
        unit="head" if grouped else "query-head",
        count=query.shape[0],
        block=block,
        produces=_merged(produces),
        consumes=tuple(consumes),
        readers=tuple(Reader(layer, query) for layer in outputs),
        network=network,
        shared=shared,
    )


def _kv_heads(found: list[tuple[Projection, Layer]], heads: int, width: int, cross: str) -> int:
    """Returns the number of KV heads of an attention, from the shapes of its weights."""
    for projection, layer in found:
        if projection.rows == (f"{cross}k",):
            return heads if layer.parameter.ndim == 3 else layer.shape[0] // width
        if "k" in projection.rows and not projection.per_head:
            return (layer.shape[0] // width - heads) // 2
    return heads


def _query_heads(network: Network) -> Iterable[UnitGroup]:
    stack = network.stack_of(0)
    heads, kv_heads = network.dimension("heads", stack), network.dimension("kv_heads", stack)
    if kv_heads is None or kv_heads == heads:
        raise UsageError(f"each head of {network.architecture} has a key of its own: use --unit head.")
    yield from _heads(network, grouped=False)


def _merged(slices: list[Slice]) -> tuple[Slice, ...]:
    """Joins slices of the same axis of the same tensor, so that each is there once."""
    found: dict[tuple[str, int], Slice] = {}
    for part in slices:
        key = (part.name, part.axis)
        before = found.get(key)
        index = part.index if before is None else torch.cat([before.index, part.index], dim=1)
        found[key] = Slice(part.name, part.axis, index)
    return tuple(found.values())


def _namer(network: Network) -> Callable[[Tensor], str]:
    names = {id(parameter): name for name, parameter in network.model.named_parameters()}
    return lambda tensor: names[id(tensor)]


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


def _channels(network: Network) -> Iterable[UnitGroup]:
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
    index = _span(0, hidden, 1)
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
    name_of = _namer(network)
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


def _tokens(network: Network) -> Iterable[UnitGroup]:
    """Yields the one group of vocabulary rows."""
    vocabulary = network.dimension("vocabulary")
    assert vocabulary is not None
    moving = _moving_axes(network, **{network.family.config["vocabulary"]: 2 * vocabulary})
    index = _span(0, vocabulary, 1)
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


def _layers(network: Network) -> Iterable[UnitGroup]:
    names = [network.block_name(block) + "." for block in range(len(network.blocks))]
    parameters = [name for name, _ in network.model.named_parameters()]
    whole = tuple(tuple(name for name in parameters if name.startswith(prefix)) for prefix in names)
    yield UnitGroup("model/layer", "layer", len(whole), None, (), (), network, whole=whole)


def half_names(network: Network, block: int, half: str) -> tuple[str, ...]:
    """Returns the names of the tensors that go when a block loses its attention or its MLP."""
    prefix = network.block_name(block)
    paths = [f"{prefix}.{path}." for path in replacements(network, half, block)]
    if not network.family.without[half]:
        group = next(group for group in _heads(network) if group.block == block)
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


def _halves(half: str) -> Callable[[Network], Iterable[UnitGroup]]:
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


@dataclass(frozen=True)
class Halves(UnitGroup):
    """The attention halves, or the MLP halves, of a model's blocks.

    Attributes:
        blocks: Index of each unit's block.
    """

    blocks: tuple[int, ...] = ()


def _experts(network: Network) -> Iterable[UnitGroup]:
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
            parts.append(Slice(name, axis, _span(0, count, 1)))
        yield UnitGroup(f"{prefix}/expert", "expert", count, block, tuple(parts), (), network)


UNITS: dict[str, Callable[[Network], Iterable[UnitGroup]]] = {
    "neuron": _neurons,
    "head": _heads,
    "query-head": _query_heads,
    "channel": _channels,
    "layer": _layers,
    "attention": _halves("attention"),
    "mlp": _halves("mlp"),
    "expert": _experts,
    "token": _tokens,
}
