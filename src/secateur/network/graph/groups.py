"""Gathers what a walk found out into unit groups."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import nn

from secateur.network.graph.rules import CONVOLUTIONS
from secateur.network.graph.walker import Found
from secateur.network.units import Reader, Slice, UnitGroup

if TYPE_CHECKING:
    from secateur.network.graph.network import GraphNetwork

Key = tuple[str, int]  # a tensor's name and one of its axes
Members = dict[int, dict[Key, list[int]]]  # by unit: its places


@dataclass(frozen=True)
class Fixed:
    """Units that can't be cut.

    Attributes:
        name: The module that makes them.
        count: How many they are.
        reason: Why.
    """

    name: str
    count: int
    reason: str


def members(found: Found) -> Members:
    """Returns the places of each unit that some tensor makes."""
    every: Members = defaultdict(dict)
    for key, place in found.places.items():
        for position, label in enumerate(found.labels.roots(place.labels).tolist()):
            if label:
                every[label].setdefault(key, []).append(position)
    return {label: places for label, places in every.items() if _first(found, places) is not None}


def free(found: Found) -> int:
    """Returns how much can be cut: the rows and columns of all units that aren't frozen."""
    total = 0
    for places in (places for label, places in members(found).items() if label not in found.labels.reasons):
        total += sum(len(at) * found.places[key].each for key, at in places.items())
    return total


def _first(found: Found, places: dict[Key, list[int]]) -> Key | None:
    """Returns the first tensor that makes a unit."""
    order = {tensor: place for place, tensor in enumerate(found.made)}
    made = [key for key in places if key[0] in order and found.places[key].role == "produces"]
    return min(made, key=lambda key: (order[key[0]], key[1])) if made else None


def groups_of(network: GraphNetwork) -> tuple[list[UnitGroup], list[Fixed]]:
    """Returns units that have the same slices, in the order of computation, and those that are frozen, with reasons."""
    found = network.found
    every = members(found)
    alike: dict[tuple[tuple[str, int, int], ...], list[int]] = defaultdict(list)
    fixed: dict[tuple[str, str], int] = defaultdict(int)
    producers = {}
    for label, places in every.items():
        first = _first(found, places)
        assert first is not None
        producers[label] = first
        reason = found.labels.reasons.get(label)
        if reason is not None:
            fixed[first[0], reason] += 1
        else:
            alike[tuple(sorted((name, axis, len(at)) for (name, axis), at in places.items()))].append(label)
    order = {tensor: place for place, tensor in enumerate(found.made)}
    sets = sorted(alike.values(), key=lambda some: order[producers[some[0]][0]])
    groups = []
    for some in sets:
        first = producers[some[0]]
        some.sort(key=lambda label, first=first: min(every[label][first]))  # type: ignore[misc]
        groups.append(_group(network, first, some, every))
    lists = sorted(fixed.items(), key=lambda one: order[one[0][0]])
    whole = [Fixed(name, *about) for name, about in found.left.items()]
    return _numbered(groups), [Fixed(found.made[tensor], count, reason) for (tensor, reason), count in lists] + whole


def _group(network: GraphNetwork, first: Key, labels: Sequence[int], every: Members) -> UnitGroup:
    producer = network.found.made[first[0]]
    parts: dict[str, list[Slice]] = {"produces": [], "consumes": [], "follows": []}
    for key in every[labels[0]]:
        index = torch.tensor([every[label][key] for label in labels])
        parts[network.found.places[key].role].append(Slice(*key, index))
    kind = _kind(network.model.get_submodule(producer))
    return UnitGroup(
        name=f"{producer}/{kind}",
        unit=kind,
        count=len(labels),
        block=None,
        produces=tuple(parts["produces"]),
        consumes=tuple(parts["consumes"]),
        follows=tuple(parts["follows"]),
        readers=tuple(_readers(network, labels)),
        network=network,  # type: ignore[arg-type]
    )


def _kind(module: nn.Module) -> str:
    if isinstance(module, CONVOLUTIONS):
        return "filter"
    return "hidden" if isinstance(module, nn.RNNBase) else "neuron"


def _readers(network: GraphNetwork, labels: Sequence[int]) -> Iterator[Reader]:
    """Yields the layers that read units through their matrix, with each unit's columns of it."""
    wanted = {label: place for place, label in enumerate(labels)}
    for name, columns in network.found.readers:
        at: list[list[int]] = [[] for _ in labels]
        for column, label in enumerate(network.found.labels.roots(columns).tolist()):
            if label in wanted:
                at[wanted[label]].append(column)
        if at[0]:
            yield Reader(network.layer(name), torch.tensor(at))


def _numbered(groups: Sequence[UnitGroup]) -> list[UnitGroup]:
    """Gives groups of the same producer different names."""
    seen: dict[str, int] = defaultdict(int)
    found = []
    for group in groups:
        seen[group.name] += 1
        found.append(group if seen[group.name] == 1 else replace(group, name=f"{group.name}#{seen[group.name]}"))
    return found
