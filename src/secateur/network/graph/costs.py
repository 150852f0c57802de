"""What a traced network costs, and with fewer units."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from secateur.evaluation.costs import Costs
from secateur.network.graph.rules import CONVOLUTIONS
from secateur.network.graph.unfollowed import unfollowed_macs
from secateur.network.unit_group import UnitGroup

if TYPE_CHECKING:
    from secateur.network.graph.network import GraphNetwork


class GraphCosts:
    """Counts parameters and multiply-accumulates of a network for any number of units per group.

    Multiply-accumulates are those of convolutions, linear and recurrent layers for one example. Those inside of modules
    that aren't followed are counted in one forward pass, and stay as they are; recurrent ones there aren't counted.
    """

    def __init__(self, network: GraphNetwork) -> None:
        self.network = network
        self._sizes = dict(network.model.named_parameters())
        self._per_unit: dict[str, list[tuple[str, int, int]]] = {
            group.name: [(part.name, part.axis, part.index.shape[1]) for part in group.slices]
            for group in network.groups
        }
        roots = {group.name: _roots(network, group) for group in network.groups}
        self._applied = [
            (
                [network.canonical(weight) for weight in _weights(network.model.get_submodule(name), name)],
                positions,
                [(len(labels), _widths(network, roots, labels)) for labels in axes],
            )
            for name, positions, axes in network.found.applied
        ]
        followed = {weight for weights, _, _ in self._applied for weight in weights}
        weights = [network.tensor(name) for name in followed]
        self._others = unfollowed_macs(network.model, network.inputs, weights) / network.found.examples

    def of(self, left: Mapping[str, int] | None = None) -> Costs:
        """Returns the costs if groups keep so many units, by name; those that aren't named keep all."""
        gone = {group.name: group.count - (left or {}).get(group.name, group.count) for group in self.network.groups}
        lost: dict[tuple[str, int], int] = {}
        for group, number in gone.items():
            for name, axis, width in self._per_unit[group]:
                lost[name, axis] = lost.get((name, axis), 0) + number * width
        numbers = {
            name: prod(size - lost.get((name, axis), 0) for axis, size in enumerate(parameter.shape))
            for name, parameter in self._sizes.items()
        }
        macs = sum(
            sum(numbers[weight] for weight in weights)
            * positions
            * prod(size - sum(gone[group] * width for group, width in widths.items()) for size, widths in axes)
            for weights, positions, axes in self._applied
        )
        macs += self._others
        parameters = sum(numbers.values())
        return Costs(parameters, round(macs), parameters * next(iter(self._sizes.values())).element_size(), 0)


def _roots(network: GraphNetwork, group: UnitGroup) -> Tensor:
    part = group.produces[0]
    return network.found.labels.roots(network.found.places[part.name, part.axis].labels[part.index[:, 0]])


def _widths(network: GraphNetwork, roots: Mapping[str, Tensor], labels: Tensor) -> dict[str, float]:
    """Returns how many places of an axis go with a unit of each group, on average over its units."""
    own = network.found.labels.roots(labels)
    found = {group: float(torch.isin(own, some).sum()) / len(some) for group, some in roots.items()}
    return {group: width for group, width in found.items() if width}


def _weights(module: nn.Module, name: str) -> list[str]:
    if isinstance(module, nn.RNNBase):
        return [f"{name}.{part}" for part, _ in module.named_parameters() if part.startswith("weight")]
    assert isinstance(module, (nn.Linear, *CONVOLUTIONS))
    return [f"{name}.weight"]
