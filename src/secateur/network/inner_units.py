"""Units inside of a block: neurons of MLPs, heads of attention."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor

from secateur.errors import UsageError
from secateur.network.family import Layout, Projection
from secateur.network.network import Layer, Network
from secateur.network.unit_group import Reader, Slice, UnitGroup, namer, span

NEURON_ROWS = ("neuron", "gate", "up")


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


def _row_parts(projection: Projection, layer: Layer, sizes: Mapping[str, int]) -> dict[str, tuple[int, int]]:
    """Returns where each of a fused weight's parts begins among its rows, and how many rows it has."""
    parts, start = {}, 0
    for name in projection.rows:
        size = sizes.get(name, layer.shape[0] // len(projection.rows))
        parts[name] = (start, size)
        start += size
    return parts


def rows_of(layer: Layer, index: Tensor, name: Callable[[Tensor], str]) -> list[Slice]:
    """Returns the slices of a layer's rows: its weight's, and its bias's where it has one."""
    axis = 0 if layer.layout is Layout.OUT_IN else layer.parameter.ndim - 1
    found = [Slice(layer.name + (".weight" if layer.module is not None else ""), axis, index)]
    bias = getattr(layer.module, "bias", None)
    if bias is not None:
        found.append(Slice(name(bias), 0, index))
    return found


def columns_of(layer: Layer, index: Tensor) -> Slice:
    axis = 1 if layer.layout is Layout.OUT_IN else 0
    return Slice(layer.name + (".weight" if layer.module is not None else ""), axis, index)


def neurons(network: Network) -> Iterable[UnitGroup]:
    """Yields each MLP's hidden features; the experts of a block lose the same ones, as they are stored together."""
    name_of = namer(network)
    for block in range(len(network.blocks)):
        found = network.described_layers(block)
        readers = [layer for projection, layer in found if projection.columns.endswith("neuron")]
        if not readers or 0 in readers[0].shape:
            continue
        count = readers[0].shape[1]
        index = span(0, count, 1)
        produces: list[Slice] = []
        for projection, layer in found:
            for part, (start, _) in _row_parts(projection, layer, {}).items():
                rows = span(start, count, 1)
                if part in NEURON_ROWS and layer.expert is None:
                    produces += rows_of(layer, rows, name_of)
                elif part in NEURON_ROWS and layer.expert == 0:  # all experts' rows are one tensor
                    produces.append(Slice(name_of(layer.parameter), 1, rows))
        consumes = {
            name_of(layer.parameter): Slice(name_of(layer.parameter), 2, index)
            if layer.expert is not None
            else columns_of(layer, index)
            for layer in readers
        }
        yield UnitGroup(
            name=f"{network.block_name(block)}/neuron",
            unit="neuron",
            count=count,
            block=block,
            produces=merged(produces),
            consumes=tuple(consumes.values()),
            readers=tuple(Reader(layer, index) for layer in readers),
            network=network,
        )


def heads_of(network: Network, grouped: bool = True) -> Iterable[UnitGroup]:
    """Yields attention heads: whole KV groups, or single query heads by their place in each KV group."""
    name_of = namer(network)
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
    single = span(0, kv_heads, width)
    produces: list[Slice] = []
    for projection, layer in inputs:
        if layer.parameter.ndim == 3:  # (hidden, heads, head_dim)
            produces.append(Slice(layer.name, 1, span(0, heads, 1)))
            continue
        if projection.per_head:
            produces += rows_of(layer, span(0, heads, width * len(projection.rows)), name_of)
            continue
        sizes = {f"{cross}q": heads * width, f"{cross}k": kv_heads * width, f"{cross}v": kv_heads * width}
        for part, (start, _) in _row_parts(projection, layer, sizes).items():
            if part == f"{cross}q":
                produces += rows_of(layer, start + query, name_of)
            elif grouped:
                produces += rows_of(layer, start + single, name_of)
    prefix = network.block_name(block)
    shared = None
    if not cross:
        every = {name for name, _ in network.model.named_parameters()} if network.family.head_tensors else set()
        for path, axis in network.family.head_tensors:
            if f"{prefix}.{path}" in every:
                produces.append(Slice(f"{prefix}.{path}", axis, span(0, heads, 1)))
        if network.stack_of(block).carries:
            shared = f"{network.stack_of(block).name}/head"
    consumes = [
        Slice(layer.name, 1, span(0, heads, 1)) if layer.parameter.ndim == 3 else columns_of(layer, query)
        for layer in outputs
    ]
    return UnitGroup(
        name=f"{prefix}/{cross}{'head' if grouped else 'query-head'}",
        unit="head" if grouped else "query-head",
        count=query.shape[0],
        block=block,
        produces=merged(produces),
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


def query_heads(network: Network) -> Iterable[UnitGroup]:
    stack = network.stack_of(0)
    heads, kv_heads = network.dimension("heads", stack), network.dimension("kv_heads", stack)
    if kv_heads is None or kv_heads == heads:
        raise UsageError(f"each head of {network.architecture} has a key of its own: use --unit head.")
    yield from heads_of(network, grouped=False)


def merged(slices: list[Slice]) -> tuple[Slice, ...]:
    """Joins slices of the same axis of the same tensor, so that each is there once."""
    found: dict[tuple[str, int], Slice] = {}
    for part in slices:
        key = (part.name, part.axis)
        before = found.get(key)
        index = part.index if before is None else torch.cat([before.index, part.index], dim=1)
        found[key] = Slice(part.name, part.axis, index)
    return tuple(found.values())
