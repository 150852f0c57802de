"""What a config and the modules have to say after a cut."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from secateur.errors import UsageError
from secateur.network.family import Layout, Projection, Stack
from secateur.network.inner_units import head_dim
from secateur.network.network import Network
from secateur.network.plain import plain_config
from secateur.network.unit_group import UnitGroup
from secateur.network.units import UNITS


@dataclass(frozen=True)
class Cut:
    """What stays of one group.

    Attributes:
        group: The group.
        keep: (units,) bool.
    """

    group: UnitGroup
    keep: Tensor

    @property
    def left(self) -> int:
        """How many units stay."""
        return int(self.keep.sum())


@dataclass(frozen=True)
class Heads:
    """An attention of the new model.

    Attributes:
        prefix: The block's new name.
        stack: The stack that the block is in.
        cross: `cross ` for the attention to an encoder's output, else empty.
        paths: Where its output and its keys are made, inside the block.
        query, kv: Its numbers of query heads and of KV heads.
    """

    prefix: str
    stack: Stack
    cross: str
    paths: tuple[str, str]
    query: int
    kv: int


def new_config(network: Network, cuts: Sequence[Cut], gone: Sequence[int], tensors: Mapping[str, Tensor]) -> Any:
    """Returns the config of the plain model that is nearest to the new shapes.

    Args:
        network: The model before the cut.
        cuts: What stays.
        gone: Blocks that go.
        tensors: The new model's, by their new names.
    """
    config = plain_config(network.model.config)
    by_unit: dict[str, list[Cut]] = defaultdict(list)
    for one in cuts:
        by_unit[one.group.unit].append(one)
    for stack, blocks in zip(network.family.stacks, network.ranges, strict=True):
        lost = [block - blocks.start for block in gone if block in blocks]
        if lost:
            _drop_layers(network, config, stack, lost, gone)
    _set_neurons(network, config, by_unit, gone)
    if "channel" in by_unit:
        _set_hidden(network, config, by_unit["channel"][0])
    if not network.family.tied_width and ("head" in by_unit or "query-head" in by_unit):
        _set_heads(network, config, tensors)
    if "expert" in by_unit:
        _set_experts(network, config, by_unit["expert"], gone)
    if "token" in by_unit:
        setattr(config, network.family.config["vocabulary"], by_unit["token"][0].left)
    return config


def _set_neurons(network: Network, config: Any, by_unit: Mapping[str, list[Cut]], gone: Sequence[int]) -> None:
    """Says the widest MLP of each stack; where all are as wide, that is all there is to say."""
    for stack, blocks in zip(network.family.stacks, network.ranges, strict=True):
        sparse = {block for block in blocks if any(layer.expert is not None for layer in network.block_layers(block))}
        for dimension, some in (("neurons", set(blocks) - sparse), ("expert_neurons", sparse)):
            field = stack.config.get(dimension)
            by_itself = field is not None and getattr(config, field) is None  # it follows the hidden size (GPT-2)
            changed = "neuron" in by_unit or ("channel" in by_unit and by_itself)
            widths = _widths(network, "neuron", by_unit.get("neuron", []), gone, some) if changed else []
            if widths and field is not None:
                setattr(config, field, max(widths))


def _set_hidden(network: Network, config: Any, one: Cut) -> None:
    """Says the new hidden size, and what would follow from it otherwise."""
    for name in (network.family.config["hidden"], *network.family.with_hidden):
        if getattr(config, name) == one.group.count:
            setattr(config, name, one.left)
    for stack, blocks in zip(network.family.stacks, network.ranges, strict=True):
        width = head_dim(network, blocks.start)
        if not network.family.tied_width:
            if "head_dim" in stack.config:
                setattr(config, stack.config["head_dim"], width)
            continue
        if one.left % width:
            raise UsageError(
                f"{network.architecture}'s heads are {width} wide, and its hidden size has to be a multiple of that; "
                f"{one.left} channels would be left. Round to multiples of {width}."
            )
        setattr(config, stack.config["heads"], one.left // width)  # blocks with other numbers are reshaped


def _set_heads(network: Network, config: Any, tensors: Mapping[str, Tensor]) -> None:
    """Says the new numbers of heads, where they are the same in every attention that there is."""
    counts: dict[str, set[tuple[int, int]]] = defaultdict(set)
    carried: dict[str, set[int]] = defaultdict(set)
    for one in heads_of(network, config, tensors):
        counts[one.stack.config["heads"]].add((one.query, one.kv))
        if one.stack.carries:
            carried[f"{one.cross}heads of the {one.stack.name}"].add(one.query)
    _check_carried(network, carried)
    for stack, blocks in zip(network.family.stacks, network.ranges, strict=True):
        found = counts[stack.config["heads"]]
        if len(found) != 1:
            continue
        ((heads, kv_heads),) = found
        setattr(config, stack.config["heads"], heads)
        if "kv_heads" in stack.config:
            setattr(config, stack.config["kv_heads"], kv_heads)
        setattr(config, stack.config["head_dim"], head_dim(network, blocks.start))


def _check_carried(network: Network, carried: Mapping[str, set[int]]) -> None:
    """Refuses numbers of heads that differ among blocks which are handed the first one's biases, one per head."""
    for heads, numbers in carried.items():
        if len(numbers) > 1:
            raise UsageError(
                f"the first block of {network.architecture} makes biases of positions for all, so the {heads} have to "
                "be as many in every block; use --uniform."
            )


def _set_experts(network: Network, config: Any, cuts: Sequence[Cut], gone: Sequence[int]) -> None:
    """Says the new number of experts, which has to be the same in every block."""
    counts = set(_widths(network, "expert", cuts, gone, range(len(network.blocks))))
    chosen = network.dimension("experts_per_token") or 1
    if len(counts) > 1:
        raise UsageError("every block has to keep the same number of experts; no config can say anything else.")
    left = counts.pop()
    if left < chosen:
        raise UsageError(f"{left} experts would stay, and each token is sent to {chosen}; keep at least {chosen}.")
    setattr(config, network.family.config["experts"], left)


def _widths(network: Network, unit: str, cuts: Sequence[Cut], gone: Sequence[int], blocks: Container[int]) -> list[int]:
    """Returns the new number of units in every one of some blocks that stays and has any."""
    left = {one.group.name: one.left for one in cuts}
    return [
        left.get(group.name, group.count)
        for group in UNITS[unit](network)
        if group.block in blocks and group.block not in gone
    ]


def _drop_layers(network: Network, config: Any, stack: Stack, lost: Sequence[int], gone: Sequence[int]) -> None:
    """Says a stack's new number of blocks, and takes their entries out of every list that has one per block.

    Args:
        network: The model before the cut.
        config: Changed in place.
        stack: The stack.
        lost: Indices in the stack.
        gone: Indices in the whole model.
    """
    if getattr(config, "scale_attn_by_inverse_layer_idx", False):
        raise UsageError(
            f"{network.architecture} scales attention by the index of the layer (scale_attn_by_inverse_layer_idx), "
            "so layers can't be removed without changing the others."
        )
    field = stack.config["layers"]
    layers = getattr(config, field)
    if layers == len(lost):
        raise UsageError(f"every block of the {stack.name} would go; keep at least one.")
    if len(network.family.stacks) == 1:
        for name, value in vars(config).items():
            if isinstance(value, list) and len(value) == layers and not name.startswith("_"):
                setattr(config, name, [item for index, item in enumerate(value) if index not in lost])
    setattr(config, field, layers - len(lost))
    if hasattr(config, "mlp_only_layers"):  # otherwise a block's index would decide anew whether it has experts
        stays = [block for block in range(layers) if block not in gone]
        dense = [block for block in stays if all(layer.expert is None for layer in network.block_layers(block))]
        config.mlp_only_layers = [stays.index(block) for block in dense]
        config.decoder_sparse_step = 1


def attributes_of(
    network: Network, config: Any, tensors: Mapping[str, Tensor], differ: Mapping[str, Any]
) -> dict[str, dict[str, int]]:
    """Returns what modules have to be told of the shapes that their config doesn't say.

    Args:
        network: The model before the cut.
        config: The new one.
        tensors: The new model's, by their new names.
        differ: Those whose shapes aren't the plain model's.
    """
    found: dict[str, dict[str, int]] = defaultdict(dict)
    family = network.family
    for one in heads_of(network, config, tensors):
        if not any(f"{one.prefix}.{path}{end}" in differ for path in one.paths for end in ("", ".weight")):
            continue
        width = one.query * head_dim(network, network.ranges[family.stacks.index(one.stack)].start)
        counts = {"heads": one.query, "kv_heads": one.kv, "width": width, "group": one.query // max(one.kv, 1)}
        values = {one.cross + name: value for name, value in counts.items()}
        for path, what in family.head_attributes.items():
            if what in values:
                parts = path.split(".")
                at = parts.index("config") if "config" in parts else len(parts) - 1
                found[".".join([one.prefix, *parts[:at]])][".".join(parts[at:])] = values[what]
    if family.position_width is not None:
        hidden = getattr(config, family.config["hidden"])
        positions = next((tensor.shape[0] for name, tensor in tensors.items() if name.endswith(".rel_attn.r")), hidden)
        if positions != hidden:
            found[network.prefix.rstrip(".")][family.position_width] = positions
    return dict(found)


def heads_of(network: Network, config: Any, tensors: Mapping[str, Tensor]) -> Iterator[Heads]:
    """Yields the new model's attentions, as their tensors are."""
    for stack, blocks in zip(network.family.stacks, network.ranges, strict=True):
        width = head_dim(network, blocks.start)
        for block in range(getattr(config, stack.config["layers"])):
            prefix = f"{network.prefix}{stack.blocks}.{block}"
            for cross in ("", "cross "):
                output = next((one for one in stack.projections if one.columns == f"{cross}head"), None)
                key = next((one for one in stack.projections if f"{cross}k" in one.rows), None)
                counts = _counts(tensors, prefix, output, key, width) if output and key else None
                if output and key and counts is not None:
                    yield Heads(prefix, stack, cross, (output.path, key.path), *counts)


def _counts(
    tensors: Mapping[str, Tensor], prefix: str, output: Projection, key: Projection, width: int
) -> tuple[int, int] | None:
    """Returns the numbers of query heads and KV heads that an attention's tensors have; None if it is gone."""
    bare = tensors.get(f"{prefix}.{output.path}")  # (hidden, heads, head_dim)
    if bare is not None:
        return bare.shape[1], bare.shape[1]
    o = tensors.get(f"{prefix}.{output.path}.weight")
    if o is None:
        return None
    heads = o.shape[1 if output.layout is Layout.OUT_IN else 0] // width
    k = tensors[f"{prefix}.{key.path}.weight"]
    rows = k.shape[0 if key.layout is Layout.OUT_IN else 1] // width
    if len(key.rows) == 1:
        return heads, rows
    return heads, heads if key.per_head else (rows - heads) // 2
