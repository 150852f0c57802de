"""Gathers what a walk found out into unit groups."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from secateur.network.graph.rules import CONVOLUTIONS
from secateur.network.graph.walker import Found
from secateur.network.unit_group import Reader, Slice, UnitGroup

if TYPE_CHECKING:
    from secateur.network.graph.network import GraphNetwork

Key = tuple[str, int]  # a tensor's name and one of its axes


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


class _Spots:
    """Where along an axis each unit has its places."""

    def __init__(self, found: Found, labels: Tensor) -> None:
        self.roots, self._order = found.labels.roots(labels).sort(stable=True)

    def of(self, units: Tensor) -> Tensor:
        """Returns (units, width): places of units, by their roots; each has as many."""
        start = torch.searchsorted(self.roots, units)
        width = int(torch.searchsorted(self.roots, units[0], right=True) - start[0])
        found: Tensor = self._order[start[:, None] + torch.arange(width)]
        return found


def _makers(found: Found) -> list[Key]:
    """Returns the tensors that make units, and along which axis, in the order of computation."""
    order = {tensor: place for place, tensor in enumerate(found.made)}
    keys = [key for key, place in found.places.items() if key[0] in order and place.role == "produces"]
    return sorted(keys, key=lambda key: (order[key[0]], key[1]))


def _made(found: Found) -> dict[int, Key]:
    """Returns all units that some tensor makes, with the first one that does."""
    first: dict[int, Key] = {}
    for key in _makers(found):
        for root in found.labels.roots(found.places[key].labels).unique().tolist():
            first.setdefault(root, key)
    first.pop(0, None)
    return first


def free(found: Found) -> int:
    """Returns how much can be cut: the numbers in rows and columns of all units that aren't frozen."""
    made = torch.tensor([*_made(found)], dtype=torch.int64)
    units = made[~found.labels.frozen(made)]
    return sum(
        place.each * int(torch.isin(found.labels.roots(place.labels), units).sum()) for place in found.places.values()
    )


def groups_of(network: GraphNetwork) -> tuple[list[UnitGroup], list[Fixed]]:
    """Returns units that have the same slices, in the order of computation, and those that are frozen, with reasons."""
    found = network.found
    first = _made(found)
    spots = {key: _Spots(found, place.labels) for key, place in found.places.items()}
    slices: dict[int, list[tuple[int, int]]] = {root: [] for root in first}  # by unit: tensor and number of places
    for number, spot in enumerate(spots.values()):
        roots, counts = spot.roots.unique_consecutive(return_counts=True)
        for root, count in zip(roots.tolist(), counts.tolist(), strict=True):
            if root in slices:
                slices[root].append((number, count))
    alike: dict[tuple[tuple[int, int], ...], list[int]] = defaultdict(list)
    fixed: dict[tuple[str, str], int] = defaultdict(int)
    for root, (tensor, _) in first.items():  # in the order of computation
        reason = found.labels.reasons.get(root)
        if reason is not None:
            fixed[tensor, reason] += 1
        else:
            alike[tuple(slices[root])].append(root)
    readers = [(name, _Spots(found, columns)) for name, columns in found.readers]
    heads = {root for labels in found.heads for root in found.labels.roots(labels).tolist()}
    groups = [
        _group(
            network,
            first[some[0]],
            torch.tensor(some),
            {key: spots[key] for key in _keys(spots, tensors)},
            readers,
            heads,
        )
        for tensors, some in alike.items()
    ]
    whole = [Fixed(name, *about) for name, about in found.left.items()]
    return _numbered(groups), [Fixed(found.made[tensor], n, reason) for (tensor, reason), n in fixed.items()] + whole


def _keys(spots: dict[Key, _Spots], tensors: Sequence[tuple[int, int]]) -> list[Key]:
    every = list(spots)
    return [every[number] for number, _ in tensors]


def _group(
    network: GraphNetwork,
    first: Key,
    roots: Tensor,
    spots: dict[Key, _Spots],
    readers: list[tuple[str, _Spots]],
    heads: set[int],
) -> UnitGroup:
    """Returns the group of some units; they stand in the order of their first places in the first tensor."""
    roots = roots[spots[first].of(roots)[:, 0].argsort()]
    producer = network.found.made[first[0]]
    parts: dict[str, list[Slice]] = {"produces": [], "consumes": [], "follows": []}
    for key, spot in spots.items():
        parts[network.found.places[key].role].append(Slice(*key, spot.of(roots)))
    kind = "head" if int(roots[0]) in heads else _kind(network.model.get_submodule(producer))
    return UnitGroup(
        name=f"{producer}/{kind}",
        unit=kind,
        count=len(roots),
        block=None,
        produces=tuple(parts["produces"]),
        consumes=tuple(parts["consumes"]),
        follows=tuple(parts["follows"]),
        readers=tuple(
            Reader(network.layer(name), spot.of(roots))
            for name, spot in readers
            if bool(torch.isin(roots[0], spot.roots))
        ),
        network=network,  # type: ignore[arg-type]
    )


def _kind(module: nn.Module) -> str:
    if isinstance(module, CONVOLUTIONS):
        return "filter"
    return "hidden" if isinstance(module, nn.RNNBase) else "neuron"


def _numbered(groups: Sequence[UnitGroup]) -> list[UnitGroup]:
    """Gives groups of the same producer different names."""
    seen: dict[str, int] = defaultdict(int)
    found = []
    for group in groups:
        seen[group.name] += 1
        found.append(group if seen[group.name] == 1 else replace(group, name=f"{group.name}#{seen[group.name]}"))
    return found
