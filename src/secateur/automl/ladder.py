"""Levels of single weights: every layer at sparsities five per cent apart, in exact equal steps of the budget."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import ceil

from secateur.allocation.allocator import HIGHEST, SPREAD
from secateur.automl.space import Place, Space
from secateur.layer_report import layer_kind
from secateur.network.network import Layer

RUNG = 0.05  # sparsity between two levels


def rungs(sizes: Mapping[str, int]) -> tuple[int, dict[str, int]]:
    """Returns the step that all levels are multiples of, in weights, and how many of them each layer's level is.

    Args:
        sizes: Weights by layer.
    """
    step = max(1, int(RUNG * min(sizes.values())))
    return step, {name: max(1, round(RUNG * size / step)) for name, size in sizes.items()}


def levels_of(sizes: Mapping[str, int], sparsity: float) -> dict[str, tuple[int, ...]]:
    """Returns the numbers of zeros that each layer may have around a sparsity: the same for all searches of a model."""
    step, each = rungs(sizes)
    low, high = max(0.0, sparsity - SPREAD), min(HIGHEST, sparsity + SPREAD)
    found = {}
    for name, size in sizes.items():
        rung = step * each[name]
        first, last = ceil(low * size / rung - 1e-9), int(high * size / rung + 1e-9)
        found[name] = tuple(rung * level for level in range(first, last + 1))
    return found


def weight_space(layers: Sequence[Layer], sparsity: float, loss: Callable[[str, int], float]) -> Space:
    """Returns the space of a search over how many weights each layer gives.

    Args:
        layers: The layers, in forward order.
        sparsity: Of all of them together.
        loss: What a layer costs in quality at a number of zeros.

    Raises:
        UsageError: The levels can't reach the sparsity.
    """
    sizes = {layer.name: layer.weights for layer in layers}
    step, _ = rungs(sizes)
    levels = levels_of(sizes, sparsity)
    losses = {name: tuple(loss(name, amount) for amount in amounts) for name, amounts in levels.items()}
    halfway = {name: some[len(some) // 2] for name, some in losses.items()}
    rank = {name: number / len(halfway) for number, name in enumerate(sorted(halfway, key=lambda one: halfway[one]))}
    places = []
    for layer, features in zip(layers, _features(layers), strict=True):
        name, amounts = layer.name, levels[layer.name]
        costs = tuple(amount // step for amount in amounts)
        places.append(Place(name, amounts, costs, losses[name], (*features, rank[name])))
    weights = sum(sizes.values()) / step
    return Space(places, round(sparsity * weights), target=lambda cost: f"--sparsity {cost / weights:.3g}")


def exact(amounts: Mapping[str, int], sizes: Mapping[str, int], sparsity: float) -> dict[str, int]:
    """Returns amounts that add up to the sparsity to the weight: less than a level is shared out over all layers."""
    found = {name: amounts.get(name, 0) for name in sizes}
    while rest := round(sparsity * sum(sizes.values())) - sum(found.values()):
        able = [name for name in sizes if (found[name] < sizes[name] if rest > 0 else found[name] > 0)]
        each, left = divmod(abs(rest), len(able))
        for number, name in enumerate(able):
            more = each + (number < left)
            found[name] = min(sizes[name], found[name] + more) if rest > 0 else max(0, found[name] - more)
    return found


def _features(layers: Sequence[Layer]) -> list[tuple[float, ...]]:
    """Returns the state of each layer that a policy sees: its depth, its size, and which kind it is."""
    kinds = sorted({layer_kind(layer.name) for layer in layers})
    largest = max(layer.weights for layer in layers)
    found = []
    for number, layer in enumerate(layers):
        depth = number / max(1, len(layers) - 1)
        kind = [float(layer_kind(layer.name) == one) for one in kinds]
        of_kind = [depth * one for one in kind]
        found.append((depth, depth * depth, layer.weights / largest, *kind, *of_kind))
    return found
