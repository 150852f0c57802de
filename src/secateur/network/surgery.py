"""Surgery: units go for good. Every coupled slice is cut, the config says the new shapes, and the model is built anew.

Where a config can say the new shapes the result is a plain model of its class. Where it can't (widths that differ from
block to block, attention narrower than a config ties it to) it is a `Reshaped` one, whose code is saved beside it.
"""

from __future__ import annotations

import copy
import math
from collections import defaultdict
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor

from secateur.errors import ModelError, UsageError
from secateur.network.family import Layout, Projection, Stack
from secateur.network.network import Network
from secateur.network.quiet import quiet_transformers
from secateur.network.reshaped import Reshaped
from secateur.network.units import (
    Halves,
    UnitGroup,
    head_dim,
    plain_class,
    plain_config,
    replacements,
    unit_groups,
)


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


def cut(network: Network, cuts: Sequence[Cut]) -> Network:
    """Returns a smaller model; the one that was given shares its uncut tensors and isn't to be used afterwards.

    Args:
        network: The model.
        cuts: What stays of which groups; each group at most once.

    Raises:
        UsageError: A group would lose all of its units, or the model's kind can't be cut like this.
        ModelError: The new model can't be built.
    """
    for one in cuts:
        if one.left == 0 and not isinstance(one.group, Halves):
            raise UsageError(f"{one.group.name} would lose all {one.group.count} units; keep at least one.")
    tensors = {name: parameter.detach() for name, parameter in network.model.named_parameters()}
    buffers = {name: tensor for name, tensor in network.model.state_dict().items() if name not in tensors}
    _rescale(network, cuts, tensors)
    _slice([*cuts, *_emptied(network, cuts)], tensors)
    gone = _gone_blocks(network, cuts)
    replaced = _replaced(network, cuts, gone)
    tensors = _renumbered(network, _without(cuts, tensors), gone)
    state = {**_renumbered(network, _known(buffers, network, tensors), gone), **tensors}
    config = _config(network, cuts, gone, tensors)
    return _build(network, config, state, tensors, replaced, gone)


def _slice(cuts: Iterable[Cut], tensors: dict[str, Tensor]) -> None:
    """Cuts each tensor once per axis, in place in the mapping."""
    stays: dict[tuple[str, int], Tensor] = {}
    for one in cuts:
        for part in one.group.slices:
            key = (part.name, part.axis)
            if key not in stays:
                stays[key] = torch.ones(tensors[part.name].shape[part.axis], dtype=torch.bool)
            stays[key][part.index[~one.keep].flatten()] = False
    for (name, axis), keep in stays.items():
        tensors[name] = tensors[name].index_select(axis, keep.nonzero().flatten().to(tensors[name].device))


def _without(cuts: Iterable[Cut], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Leaves out the tensors that go as a whole, unless a half without heads keeps its module."""
    gone: set[str] = set()
    for one in cuts:
        if one.group.whole and not _headless(one.group):
            for number in (~one.keep).nonzero().flatten().tolist():
                gone |= {name for name in one.group.whole[number] if "relative_attention_bias" not in name}
    return {name: tensor for name, tensor in tensors.items() if name not in gone}


def _headless(group: UnitGroup) -> bool:
    """Whether a half of this kind stays where it is, without a head (XLNet's attention holds a norm that is needed)."""
    return isinstance(group, Halves) and not group.network.family.without[group.unit]


def _known(buffers: Mapping[str, Tensor], network: Network, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns the state dict's buffers; other names of tied weights are left to the model to tie again."""
    named = {name for name, _ in network.model.named_buffers()}
    return {name: tensor for name, tensor in buffers.items() if name in named}


def _emptied(network: Network, cuts: Iterable[Cut]) -> list[Cut]:
    """Returns cuts of all heads of the attention halves that go where nothing can stand in for them."""
    blocks = [
        one.group.blocks[number]
        for one in cuts
        if isinstance(one.group, Halves) and _headless(one.group)
        for number in (~one.keep).nonzero().flatten().tolist()
    ]
    if not blocks:
        return []
    heads = [group for group in unit_groups(network, "head") if group.block in blocks]
    return [Cut(group, torch.zeros(group.count, dtype=torch.bool)) for group in heads]


def _gone_blocks(network: Network, cuts: Iterable[Cut]) -> list[int]:
    return [index for one in cuts if one.group.unit == "layer" for index in (~one.keep).nonzero().flatten().tolist()]


def _renumbered(network: Network, tensors: Mapping[str, Tensor], gone: Sequence[int]) -> dict[str, Tensor]:
    """Renames the tensors of blocks whose index has changed."""
    if not gone:
        return dict(tensors)
    new = _new_names(network, gone)
    carried = {path for path, _ in network.family.head_tensors} if any(s.carries for s in network.family.stacks) else ()
    found = {}
    for name, tensor in tensors.items():
        for old, other in new.items():
            if name.startswith(f"{old}."):
                if other is not None:
                    found[other + name.removeprefix(old)] = tensor
                elif name.removeprefix(f"{old}.") in carried:  # the first block that stays makes what all are handed
                    found[f"{old.rpartition('.')[0]}.0.{name.removeprefix(f'{old}.')}"] = tensor
                break
        else:
            found[name] = tensor
    return found


def _new_names(network: Network, gone: Sequence[int]) -> dict[str, str | None]:
    """Returns each block's new name; None where it goes."""
    names: dict[str, str | None] = {}
    counts: dict[str, int] = defaultdict(int)
    for block in range(len(network.blocks)):
        old = network.block_name(block)
        stem = old.rpartition(".")[0]
        if block in gone:
            names[old] = None
            continue
        names[old] = f"{stem}.{counts[stem]}"
        counts[stem] += 1
    return names


def _replaced(network: Network, cuts: Iterable[Cut], gone: Sequence[int]) -> dict[str, str]:
    """Returns what stands in for which module in the new model, by new names."""
    before = getattr(network.model.config, "secateur", {"replaced": {}})["replaced"]
    found = dict(before)
    for one in cuts:
        if isinstance(one.group, Halves):
            for number in (~one.keep).nonzero().flatten().tolist():
                prefix = network.block_name(one.group.blocks[number])
                found |= {
                    f"{prefix}.{path}": kind
                    for path, kind in replacements(network, one.group.unit, one.group.blocks[number]).items()
                }
    if not gone:
        return found
    names = _new_names(network, gone)
    renamed = {}
    for path, kind in found.items():
        old = next(block for block in names if path.startswith(f"{block}."))
        if names[old] is not None:
            renamed[f"{names[old]}{path.removeprefix(old)}"] = kind
    return renamed


def _rescale(network: Network, cuts: Iterable[Cut], tensors: dict[str, Tensor]) -> None:
    """Makes up for means over fewer channels and for factors that depend on the hidden size."""
    one = next((one for one in cuts if one.group.unit == "channel"), None)
    family = network.family
    if one is None:
        return
    factor = math.sqrt(one.group.count / one.left)
    scaled: dict[str, float] = defaultdict(lambda: 1.0)
    offset = 1.0 if family.norm == "rms+1" else 0.0
    norms = [part.name for part in one.group.follows if tensors[part.name].ndim == 1]
    if family.norm != "layer":
        for name in norms:
            scaled[name] *= factor
    tied = network.model.config.tie_word_embeddings
    if family.scaled_head and tied:
        final = f"{network.prefix}{family.stacks[-1].blocks.rpartition('.')[0]}.final_layer_norm.weight"
        scaled[final] /= factor
    if family.scaled_embedding:
        for path in family.embeddings:
            tensors[f"{network.prefix}{path}.weight"] = tensors[f"{network.prefix}{path}.weight"] * factor
        if tied:
            final = next(name for name in norms if ".".join(name.split(".")[:-1]) in _final_norms(network))
            scaled[final] /= factor
    for name, by in scaled.items():
        tensors[name] = (tensors[name] + offset) * by - offset


def _final_norms(network: Network) -> set[str]:
    """Returns the names of modules directly below the base model that have a weight per channel."""
    return {
        f"{network.prefix}{name}"
        for name, module in network.base.named_children()
        if "norm" in name and module is not None
    }


def _config(network: Network, cuts: Sequence[Cut], gone: Sequence[int], tensors: Mapping[str, Tensor]) -> Any:
    """Returns the config of the plain model that is nearest to the new shapes."""
    config = plain_config(network)
    fields = network.family.config
    by_unit: dict[str, list[Cut]] = defaultdict(list)
    for one in cuts:
        by_unit[one.group.unit].append(one)
    for stack, blocks in zip(network.family.stacks, network.ranges, strict=True):
        lost = [block - blocks.start for block in gone if block in blocks]
        if lost:
            _drop_layers(network, config, stack, lost)
    if "neuron" in by_unit:
        _set_neurons(network, config, by_unit["neuron"], gone)
    if "channel" in by_unit:
        _set_hidden(network, config, by_unit["channel"][0])
    if "head" in by_unit or "query-head" in by_unit:
        _set_heads(network, config, by_unit, gone)
    if "expert" in by_unit:
        _set_experts(network, config, by_unit["expert"], gone)
    if "token" in by_unit:
        setattr(config, fields["vocabulary"], by_unit["token"][0].left)
    return config


def _set_neurons(network: Network, config: Any, cuts: Sequence[Cut], gone: Sequence[int]) -> None:
    """Says the widest MLP of each stack; where all are as wide, that is all there is to say."""
    for stack, blocks in zip(network.family.stacks, network.ranges, strict=True):
        sparse = {block for block in blocks if any(layer.expert is not None for layer in network.block_layers(block))}
        for field, some in (("neurons", set(blocks) - sparse), ("expert_neurons", sparse)):
            widths = _widths(network, "neuron", cuts, gone, some)
            if widths:
                setattr(config, stack.config[field], max(widths))


def _set_hidden(network: Network, config: Any, one: Cut) -> None:
    """Says the new hidden size, and the width of heads where it would follow from the hidden size otherwise."""
    if not network.family.tied_width:
        for stack in network.family.stacks:
            if "head_dim" in stack.config:
                setattr(config, stack.config["head_dim"], head_dim(network))
    for name in (network.family.config["hidden"], *network.family.with_hidden):
        if getattr(config, name) == one.group.count:
            setattr(config, name, one.left)


def _set_heads(network: Network, config: Any, by_unit: Mapping[str, list[Cut]], gone: Sequence[int]) -> None:
    """Says the new number of heads, where it is the same everywhere and the config can say it."""
    unit = "head" if "head" in by_unit else "query-head"
    by_field: dict[str, set[int]] = defaultdict(set)
    for stack, blocks in zip(network.family.stacks, network.ranges, strict=True):
        by_field[stack.config["heads"]] |= set(_widths(network, unit, by_unit[unit], gone, blocks))
    for stack, blocks in zip(network.family.stacks, network.ranges, strict=True):
        counts = by_field[stack.config["heads"]]
        if len(counts) == 1:
            _set_stack_heads(network, config, stack, blocks, unit, next(iter(counts)))


def _set_stack_heads(network: Network, config: Any, stack: Stack, blocks: range, unit: str, left: int) -> None:
    width = head_dim(network, blocks.start)
    kv_heads = network.dimension("kv_heads", stack)
    if network.family.tied_width:
        if left * width == getattr(config, network.family.config["hidden"]):  # else the config can't say it
            setattr(config, stack.config["heads"], left)
        return
    heads = network.dimension("heads", stack)
    assert heads is not None
    if kv_heads is None:
        setattr(config, stack.config["heads"], left)
    elif unit == "head":
        setattr(config, stack.config["heads"], left * (heads // kv_heads))
        setattr(config, stack.config["kv_heads"], left)
    else:
        setattr(config, stack.config["heads"], left * kv_heads)
    setattr(config, stack.config["head_dim"], width)


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
        for group in unit_groups(network, unit)
        if group.block in blocks and group.block not in gone
    ]


def _drop_layers(network: Network, config: Any, stack: Stack, gone: Sequence[int]) -> None:
    """Says a stack's new number of blocks, and takes their entries out of every list that has one per block."""
    if getattr(config, "scale_attn_by_inverse_layer_idx", False):
        raise UsageError(
            f"{network.architecture} scales attention by the index of the layer (scale_attn_by_inverse_layer_idx), "
            "so layers can't be removed without changing the others."
        )
    field = stack.config["layers"]
    layers = getattr(config, field)
    if layers == len(gone):
        raise UsageError(f"every block of the {stack.name} would go; keep at least one.")
    if len(network.family.stacks) == 1:
        for name, value in vars(config).items():
            if isinstance(value, list) and len(value) == layers and not name.startswith("_"):
                setattr(config, name, [item for index, item in enumerate(value) if index not in gone])
    setattr(config, field, layers - len(gone))
    if hasattr(config, "mlp_only_layers"):  # otherwise a block's index would decide anew whether it has experts
        stays = [block for block in range(layers) if block not in gone]
        dense = [block for block in stays if all(layer.expert is None for layer in network.block_layers(block))]
        config.mlp_only_layers = [stays.index(block) for block in dense]
        config.decoder_sparse_step = 1


def _build(
    network: Network,
    config: Any,
    state: dict[str, Tensor],
    tensors: Mapping[str, Tensor],
    replaced: dict[str, str],
    gone: Sequence[int],
) -> Network:
    """Builds the model: plain if it can be, else reshaped."""
    kind = plain_class(network)
    config, kind = _relabelled(network, config, kind)
    shapes = _plain_shapes(config, kind)
    differ = {name: list(tensor.shape) for name, tensor in tensors.items() if tuple(tensor.shape) != shapes.get(name)}
    attributes = _attributes(network, config, tensors, differ)
    if differ or replaced or attributes:
        config.secateur = {"shapes": differ, "attributes": attributes, "replaced": replaced}
        kind = reshaped_class(kind)
    config.architectures = [kind.__name__]
    with quiet_transformers(), torch.random.fork_rng(devices=[]):
        model, info = kind.from_pretrained(
            None, config=config, state_dict=state, output_loading_info=True, dtype=network.model.dtype
        )
    if misfits := [*sorted(info["mismatched_keys"]), *sorted(info["unexpected_keys"])]:
        raise ModelError(f"the cut model doesn't fit its config: {misfits[0]} among {len(misfits)} tensors.")
    if model.can_generate():
        model.generation_config = copy.deepcopy(network.model.generation_config)
    model.eval().requires_grad_(False)
    return network.with_model(model)


def _plain_shapes(config: Any, kind: Any) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"), torch.random.fork_rng(devices=[]):
        return {name: tuple(parameter.shape) for name, parameter in kind(config).named_parameters()}


def _relabelled(network: Network, config: Any, kind: Any) -> tuple[Any, Any]:
    """Returns a config that its own class accepts: a Llama whose heads don't divide its width becomes a Mistral.

    Both compute the same; Mistral's config has no such check. Where there is no way out the heads stay as they were
    in the config, and the shapes are written beside it.
    """
    try:
        return type(config).from_dict(config.to_dict()), kind
    except (StrictDataclassError, ValueError) as error:
        plain = kind.__name__.startswith("Llama") and not (config.attention_bias or config.mlp_bias)
        name = kind.__name__.replace("Llama", "Mistral")
        if plain and hasattr(transformers, name):
            fields = {**config.to_dict(), "sliding_window": None}
            for gone in ("model_type", "attention_bias", "mlp_bias", "pretraining_tp", "architectures"):
                fields.pop(gone, None)
            return transformers.MistralConfig(**fields), getattr(transformers, name)
        before = plain_config(network)
        for dimension in ("heads", "kv_heads"):
            field = network.family.config.get(dimension)
            if field is not None:
                setattr(config, field, getattr(before, field))
        try:
            return type(config).from_dict(config.to_dict()), kind
        except (StrictDataclassError, ValueError):
            raise UsageError(
                f"{network.architecture} can't have these widths: {' '.join(str(error).split())} "
                "Round to other multiples with --round-to."
            ) from error


def _attributes(
    network: Network, config: Any, tensors: Mapping[str, Tensor], differ: Mapping[str, Any]
) -> dict[str, dict[str, int]]:
    """Returns what modules have to be told of the shapes that their config doesn't say."""
    found: dict[str, dict[str, int]] = defaultdict(dict)
    family = network.family
    for stack, blocks in zip(family.stacks, network.ranges, strict=True):
        width = head_dim(network, blocks.start)
        for block in range(getattr(config, stack.config["layers"])):
            prefix = f"{network.prefix}{stack.blocks}.{block}"
            values: dict[str, int] = {}
            for cross in ("", "cross "):
                output = next((one for one in stack.projections if one.columns == f"{cross}head"), None)
                key = next((one for one in stack.projections if f"{cross}k" in one.rows), None)
                if output is None or key is None:
                    continue
                paths = (f"{prefix}.{output.path}", f"{prefix}.{key.path}")
                if not any(name in differ for path in paths for name in (path, f"{path}.weight")):
                    continue
                heads, kv_heads = _head_counts(tensors, prefix, output, key, width)
                values[f"{cross}heads"], values[f"{cross}width"] = heads, heads * width
                values[f"{cross}kv_heads"], values[f"{cross}group"] = kv_heads, heads // max(kv_heads, 1)
            for path, what in family.head_attributes.items():
                if what in values:
                    parts = path.split(".")
                    at = parts.index("config") if "config" in parts else len(parts) - 1
                    found[".".join([prefix, *parts[:at]])][".".join(parts[at:])] = values[what]
    if family.position_width is not None:
        hidden = getattr(config, family.config["hidden"])
        positions = next((tensor.shape[0] for name, tensor in tensors.items() if name.endswith(".rel_attn.r")), hidden)
        if positions != hidden:
            found[network.prefix.rstrip(".")][family.position_width] = positions
    return dict(found)


def _head_counts(
    tensors: Mapping[str, Tensor], prefix: str, output: Projection, key: Projection, width: int
) -> tuple[int, int]:
    """Returns the numbers of query heads and KV heads that an attention's tensors have."""
    o = tensors.get(f"{prefix}.{output.path}.weight")
    if o is None:  # (hidden, heads, head_dim)
        heads = tensors[f"{prefix}.{output.path}"].shape[1]
        return heads, heads
    heads = o.shape[1 if output.layout is Layout.OUT_IN else 0] // width
    k = tensors[f"{prefix}.{key.path}.weight"]
    rows = k.shape[0 if key.layout is Layout.OUT_IN else 1] // width
    if len(key.rows) == 1:
        return heads, rows
    return heads, heads if key.per_head else (rows - heads) // 2


def reshaped_class(kind: Any) -> Any:
    """Returns the class of a model of some plain kind with shapes of its own."""
    name = f"Secateur{kind.__name__}"
    return type(name, (Reshaped, kind), {"plain": kind, "__module__": kind.__module__})


def pad_to_plain(cuts: Sequence[Cut]) -> list[Cut]:
    """Returns cuts with the same number of units left in every group of a kind.

    Units that were to go stay where others have more; their weights are zero by then.
    """
    most: dict[str, int] = defaultdict(int)
    for one in cuts:
        most[one.group.unit] = max(most[one.group.unit], one.left)
    padded = []
    for one in cuts:
        missing = most[one.group.unit] - one.left
        keep = one.keep.clone()
        keep[(~keep).nonzero().flatten()[:missing]] = True
        padded.append(Cut(one.group, keep))
    return padded
