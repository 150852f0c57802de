"""What a pruner finds in a model that is being trained."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import transformers
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from transformers.pytorch_utils import Conv1D

from secateur.errors import ModelError, UsageError, did_you_mean
from secateur.layer_choice import chosen_layers
from secateur.network.families import IMAGE_TYPES, family_of
from secateur.network.family import Layout
from secateur.network.graph.network import GraphNetwork
from secateur.network.graph.rules import CONVOLUTIONS
from secateur.network.inner_units import heads_of
from secateur.network.network import Layer, Network, Source
from secateur.network.pretrained import plain_kind
from secateur.network.unit_group import UnitGroup
from secateur.network.units import UNITS, unit_groups
from secateur.recipe import TRACED_UNITS
from secateur.training.sharded import is_sharded

TRAINED_UNITS = ("weight", "neuron", "head", "query-head", "filter", "hidden")


def unwrapped(model: nn.Module) -> nn.Module:
    """Returns the model inside of `torch.compile`'s and DistributedDataParallel's wrappers."""
    while True:
        if isinstance(model, DistributedDataParallel):
            model = model.module
        elif isinstance(getattr(model, "_orig_mod", None), nn.Module):
            model = model._orig_mod  # type: ignore[assignment]
        else:
            return model


def described(model: nn.Module) -> Network | None:
    """Returns a transformers model with the description of its family; None if it is another kind of network."""
    if not isinstance(model, transformers.PreTrainedModel) or model.config.model_type in IMAGE_TYPES:
        return None
    known: Any = model
    try:
        family = family_of(known.config.model_type, known.config)
    except ModelError:
        return None
    nowhere = Path(os.devnull)  # it was built in memory: there are no files to copy along
    source = Source(type(model).__name__, nowhere, str(known.dtype).removeprefix("torch."))
    return Network(known, family, None, source, known.device)


def weight_layers(model: nn.Module, include: Sequence[str], exclude: Sequence[str]) -> list[Layer]:
    """Returns the layers whose weights are pruned: a language model's blocks, or all layers of another network.

    Raises:
        UsageError: A glob matches nothing, or nothing is left.
    """
    network = described(model)
    if network is not None:
        return chosen_layers(network.layers(), network.outside(), include, exclude)
    found = [layer for name, module in model.named_modules() for layer in _layers(name, module)]
    if not found:
        raise UsageError(f"{type(model).__name__} has no linear, convolutional or recurrent layer to prune.")
    return chosen_layers(found, [], include, exclude)


def _layers(name: str, module: nn.Module) -> list[Layer]:
    if isinstance(module, nn.RNNBase):
        stored = [(kind, one) for kind, one in module.named_parameters(recurse=False) if kind.startswith("weight")]
        return [Layer(f"{name}.{kind}", one, Layout.OUT_IN, name, None) for kind, one in stored]
    if isinstance(module, (nn.Linear, *CONVOLUTIONS)) and isinstance(module.weight, nn.Parameter):
        return [Layer(name, module.weight, Layout.OUT_IN, name, module)]
    if isinstance(module, Conv1D):
        return [Layer(name, module.weight, Layout.IN_OUT, name, module)]
    return []


def trained_groups(
    model: nn.Module,
    units: Sequence[str],
    example_inputs: Any,
    leaf_modules: Sequence[type[nn.Module] | str],
    cut: bool = False,
) -> tuple[Network | GraphNetwork, list[UnitGroup]]:
    """Returns a model's unit groups of some kinds, and what knows how to cut them.

    Args:
        model: The model.
        units: The kinds.
        example_inputs: What a network is traced with; a language model needs none.
        leaf_modules: What tracing doesn't look into.
        cut: Whether units were cut already: a KV group may be left with one query head.

    Raises:
        UsageError: A kind is unknown, the model has none of it, or it is sharded or can't be traced without inputs.
    """
    if any(is_sharded(parameter) for parameter in model.parameters()):
        raise UsageError(
            "units can't be cut from a model whose parameters are sharded (FSDP2): prune single weights "
            "(unit='weight'), or train it with DistributedDataParallel."
        )
    network = described(model)
    if network is not None:
        unknown = [unit for unit in units if unit in ("filter", "hidden")]
        if unknown:
            raise UsageError(f"{network.architecture} has no units of the kind '{unknown[0]}'.")
        found: list[UnitGroup] = []
        for unit in units:
            found += heads_of(network, grouped=False) if cut and unit == "query-head" else unit_groups(network, unit)
        return network, found
    if example_inputs is None:
        raise UsageError(
            f"{type(model).__name__} is traced to find its units: give example_inputs, a tensor or a tuple."
        )
    graph = GraphNetwork(model, example_inputs, leaf_modules, keep_class=plain_kind(model) is not None)
    groups = [group for group in graph.groups if group.unit in units]
    missing = [unit for unit in units if unit not in {group.unit for group in groups}]
    if missing:
        there = sorted({group.unit for group in graph.groups}) or ["none"]
        raise UsageError(
            f"{graph.architecture} has no units of the kind '{missing[0]}' that can be cut; it has {', '.join(there)}."
        )
    return graph, groups


def check_units(units: Sequence[str]) -> None:
    """Raises UsageError if these kinds can't be removed while a model trains."""
    for unit in units:
        if unit not in (*TRAINED_UNITS, *UNITS):
            raise UsageError(f"unknown unit '{unit}'.{did_you_mean(unit, TRAINED_UNITS)}")
        if unit not in TRAINED_UNITS:
            raise UsageError(
                f"units of the kind '{unit}' aren't removed during training, only {', '.join(TRAINED_UNITS)}; "
                "secateur.prune removes the others before it."
            )
    if "weight" in units and len(units) > 1:
        raise UsageError(f"unit '{', '.join(units)}': single weights aren't pruned together with whole units.")
    if len(set(units)) < len(units) or {"head", "query-head"} <= set(units):
        raise UsageError(f"unit '{', '.join(units)}' names heads or another kind twice.")


__all__ = ["TRACED_UNITS", "TRAINED_UNITS", "check_units", "described", "trained_groups", "unwrapped", "weight_layers"]
