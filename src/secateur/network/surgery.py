"""Surgery: units go for good. Every coupled slice is cut, the config says the new shapes, and the model is built anew.

Where a config can say the new shapes the result is a plain model of its class. Where it can't (widths that differ from
block to block, attention narrower than a config ties it to) it is a `Reshaped` one, whose code is saved beside it.
"""

from __future__ import annotations

import copy
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor

from secateur.errors import ModelError, UsageError
from secateur.network.network import Network
from secateur.network.new_config import Cut, attributes_of, new_config
from secateur.network.plain import plain_class, plain_config, reshaped_class, reshaped_config
from secateur.network.quiet import quiet_transformers
from secateur.network.unit_group import Halves, UnitGroup
from secateur.network.units import unit_groups
from secateur.network.whole_units import replacements


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
    config = new_config(network, cuts, gone, tensors)
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
    if family.scaled_head is not None and getattr(network.model.config, family.scaled_head):
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


def _build(
    network: Network,
    config: Any,
    state: dict[str, Tensor],
    tensors: Mapping[str, Tensor],
    replaced: dict[str, str],
    gone: Sequence[int],
) -> Network:
    """Builds the model: plain if it can be, else reshaped."""
    kind = plain_class(network.model)
    config, kind = _relabelled(network, config, kind)
    shapes = _plain_shapes(config, kind)
    if homeless := sorted(set(tensors) - set(shapes)):
        raise UsageError(
            f"{network.architecture} of these widths has no place for {homeless[0]}; round to other multiples."
        )
    differ = {name: list(tensor.shape) for name, tensor in tensors.items() if tuple(tensor.shape) != shapes.get(name)}
    attributes = attributes_of(network, config, tensors, differ)
    if differ or replaced or attributes:
        config = reshaped_config(config)
        config.secateur = {"shapes": differ, "attributes": attributes, "replaced": replaced}
        kind = reshaped_class(kind)
    return built(network, config, kind, state)


def built(network: Network, config: Any, kind: Any, state: dict[str, Tensor]) -> Network:
    """Returns a model of a config, a class and weights, in the place of another one.

    Args:
        network: What it takes the place of.
        config: The new model's; it gets the class's name.
        kind: The new model's class, plain or reshaped.
        state: Its parameters and buffers by name; ties once.

    Raises:
        ModelError: They don't fit each other.
    """
    config.architectures = [kind.__name__]
    with quiet_transformers(), torch.random.fork_rng(devices=[]):
        model, info = kind.from_pretrained(
            None, config=config, state_dict=state, output_loading_info=True, dtype=network.model.dtype
        )
    if misfits := [*sorted(info["mismatched_keys"]), *sorted(info["unexpected_keys"])]:
        raise ModelError(f"the new model doesn't fit its config: {misfits[0]} among {len(misfits)} tensors.")
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
        before = plain_config(network.model.config)
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


def pad_to_plain(cuts: Sequence[Cut]) -> list[Cut]:
    """Returns cuts with the same number of units left wherever one field of the config counts them.

    Units that were to go stay where others have more; their weights are zero by then.
    """
    left = {one.group.name: one.left for one in cuts}
    most: dict[tuple[str, str], int] = defaultdict(int)
    for unit in {one.group.unit for one in cuts if one.group.block is not None}:
        for group in unit_groups(cuts[0].group.network, unit):
            most[_counted(group)] = max(most[_counted(group)], left.get(group.name, group.count))
    padded = []
    for one in cuts:
        keep = one.keep.clone()
        if one.group.block is not None:
            keep[(~keep).nonzero().flatten()[: most[_counted(one.group)] - one.left]] = True
        padded.append(Cut(one.group, keep))
    return padded


def _counted(group: UnitGroup) -> tuple[str, str]:
    """Returns the kind of a group's units and the field of the config that counts them."""
    assert group.block is not None
    experts = any(reader.layer.expert is not None for reader in group.readers)
    dimension = {"neuron": "expert_neurons" if experts else "neurons", "expert": "experts"}.get(group.unit, "heads")
    return group.unit, group.network.stack_of(group.block).config[dimension]


__all__ = ["Cut", "built", "cut", "pad_to_plain"]
