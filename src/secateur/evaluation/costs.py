"""What a model costs: parameters, multiply-accumulates, bytes; and how much of it goes with a unit."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from secateur.network.inner_units import head_dim
from secateur.network.network import Network
from secateur.network.unit_group import UnitGroup


@dataclass(frozen=True)
class Costs:
    """What a model costs.

    Attributes:
        parameters: Their number, ties counted once.
        macs: Multiply-accumulates per token in a forward over windows of `length` tokens: a weight of a block or of an
            output head counts once (those of experts by the share of the experts that a token is sent to), and each
            query head meets half of the window's keys and values; all of them where the model looks both ways, and in
            models with an encoder, whose decoder counts as if it read a window of this length, too.
        bytes: Of the weights in the model's dtype.
        length: Tokens per window; 0 where `macs` is per example, of networks that aren't language models.
    """

    parameters: int
    macs: int
    bytes: int
    length: int


def costs(network: Network, length: int) -> Costs:
    """Returns what a model costs.

    Args:
        network: The model.
        length: Tokens per window that `macs` is about.
    """
    parameters = list(network.model.parameters())
    linear = sum(used(network, name) * network.model.get_parameter(name).numel() for name in linear_names(network))
    widths = [
        width
        for block in range(len(network.blocks))
        for projection, width in (
            *(
                (one, layer.shape[1])
                for one, layer in network.described_layers(block)
                if not one.path.endswith(".kept")
            ),
            *((one, factors.down.in_features) for one, factors in network.factors(block)),
        )
        if projection.columns.endswith("head")
    ]
    attention = sum(widths) * keys_and_values(network, length)
    return Costs(
        parameters=sum(parameter.numel() for parameter in parameters),
        macs=round(linear) + attention,
        bytes=sum(parameter.nbytes for parameter in parameters),
        length=length,
    )


def keys_and_values(network: Network, length: int) -> int:
    """Returns the products per token and attention channel: one with each key and one with each value in sight."""
    return length if network.family.objective == "causal" else 2 * length


def unit_costs(group: UnitGroup, what: str, length: int) -> Tensor:
    """Returns (units,) int64: what goes with each unit, ties counted once.

    Args:
        group: The group.
        what: `parameters`, `macs` or `bytes`.
        length: As for `costs`.
    """
    network = group.network
    if what == "parameters":
        return group.parameters_each()
    if what == "bytes":
        size: int = network.model.dtype.itemsize
        return group.parameters_each() * size
    linear = linear_names(network)
    found: Tensor
    if group.whole:
        found = torch.tensor(
            [
                round(sum(used(network, name) * group.tensor(name).numel() for name in names if name in linear))
                for names in group.whole
            ]
        )
    else:
        found = torch.zeros(group.count, dtype=torch.int64)
        for part in group.slices:
            tensor = group.tensor(part.name)
            if part.name in linear and tensor.ndim > 1:
                each = part.index.shape[1] * (tensor.numel() // tensor.shape[part.axis])
                found = found + round(used(network, part.name) * each)
    if group.unit in ("head", "query-head"):
        found += sum(reader.index.shape[1] for reader in group.readers) * keys_and_values(network, length)
    if group.unit in ("layer", "attention"):
        width = head_dim(network) * (network.dimension("heads") or 0)
        found += width * keys_and_values(network, length)
    return found


def linear_names(network: Network) -> set[str]:
    """Returns the names of the parameters that multiply hidden states: those of blocks, and heads, tied or not."""
    names = {id(parameter): name for name, parameter in network.model.named_parameters()}
    inside = {names[id(layer.parameter)] for layer in network.layers()}
    factors = {
        names[id(parameter)]
        for block in range(len(network.blocks))
        for _, module in network.factors(block)
        for parameter in module.parameters()
        if parameter.ndim > 1
    }
    heads = {names[id(layer.parameter)] for layer in network.outside() if not layer.table}
    return inside | factors | heads


def used(network: Network, name: str) -> float:
    """Returns the share of a parameter that takes part in each token: of experts, those that a token is sent to."""
    path = network.family.experts
    experts, chosen = network.dimension("experts"), network.dimension("experts_per_token")
    if path is None or f".{path}." not in name or not experts or not chosen:
        return 1.0
    return chosen / experts
