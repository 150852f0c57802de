"""The kinds of units that language models have.

Neurons, heads, channels and vocabulary rows differ in the slices that they list and in nothing else. Layers and
halves of layers are whole tensors; they are listed by name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from secateur.errors import UsageError, did_you_mean
from secateur.network.inner_units import heads_of, neurons, query_heads
from secateur.network.network import Network
from secateur.network.unit_group import UnitGroup
from secateur.network.whole_units import channels, experts, halves, layers, tokens


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


UNITS: dict[str, Callable[[Network], Iterable[UnitGroup]]] = {
    "neuron": neurons,
    "head": heads_of,
    "query-head": query_heads,
    "channel": channels,
    "layer": layers,
    "attention": halves("attention"),
    "mlp": halves("mlp"),
    "expert": experts,
    "token": tokens,
}
