"""What a traced network costs, and with fewer units."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from secateur.evaluation.costs import Costs
from secateur.network.graph.network import GraphNetwork
from secateur.network.graph.rules import CONVOLUTIONS


class GraphCosts:
    """Counts parameters and multiply-accumulates of a network for any number of units per group.

    Multiply-accumulates are those of convolutions, linear and recurrent layers for one example.
    """

    def __init__(self, network: GraphNetwork) -> None:
        self.network = network
        self._sizes = dict(network.model.named_parameters())
        self._per_unit: dict[str, list[tuple[str, int, int]]] = {
            group.name: [(part.name, part.axis, part.index.shape[1]) for part in group.slices]
            for group in network.groups
        }

    def of(self, left: Mapping[str, int] | None = None) -> Costs:
        """Returns the costs if groups keep so many units, by name; those that aren't named keep all."""
        lost: dict[tuple[str, int], int] = {}
        for group in self.network.groups:
            gone = group.count - (left or {}).get(group.name, group.count)
            for name, axis, width in self._per_unit[group.name]:
                lost[name, axis] = lost.get((name, axis), 0) + gone * width
        shapes = {
            name: tuple(size - lost.get((name, axis), 0) for axis, size in enumerate(parameter.shape))
            for name, parameter in self._sizes.items()
        }
        parameters = sum(_product(shape) for shape in shapes.values())
        size = next(iter(self._sizes.values())).element_size()
        macs = sum(
            positions * _product(shapes[name])
            for module, positions in self.network.found.positions.items()
            for name in map(self.network.canonical, _weights(self.network.model.get_submodule(module), module))
        )
        return Costs(parameters, round(macs), parameters * size, 0)


def _weights(module: nn.Module, name: str) -> list[str]:
    if isinstance(module, nn.RNNBase):
        return [f"{name}.{part}" for part, _ in module.named_parameters() if part.startswith("weight")]
    assert isinstance(module, (nn.Linear, *CONVOLUTIONS))
    return [f"{name}.weight"]


def _product(shape: tuple[int, ...]) -> int:
    return int(torch.tensor(shape, dtype=torch.int64).prod()) if shape else 1
