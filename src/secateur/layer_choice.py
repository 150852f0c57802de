"""Which layers a prune stage is about, and what it has to know of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from itertools import chain

from secateur.allocation import ALLOCATORS
from secateur.allocation.amounts import Pattern
from secateur.calibration.statistics import GRADIENTS, Needs
from secateur.errors import UsageError, did_you_mean
from secateur.network.network import Layer, Network
from secateur.network.unit_group import UnitGroup
from secateur.recipe import Prune
from secateur.scores import score_named
from secateur.solvers import chain_named, needs_of_chain


def needs_of(stage: Prune) -> Needs:
    """Returns the statistics that a stage reads."""
    planned = ALLOCATORS[stage.allocation].needs if stage.allocation in ALLOCATORS else Needs.NOTHING
    return solving_needs(stage) | planned


def solving_needs(stage: Prune) -> Needs:
    """Returns the statistics that solving reads, planning aside."""
    score = score_named(stage.score).needs if stage.score else Needs.NOTHING
    return score | needs_of_chain(chain_named(stage.solver)) | (Needs.OUTPUTS if stage.reconstruct else Needs.NOTHING)


def select_layers(network: Network, stage: Prune) -> list[Layer]:
    """Returns the layers that a stage is about, in forward order.

    Raises:
        UsageError: A glob matches nothing, nothing is left, or an embedding would need statistics.
    """
    outside = network.outside()
    layers = chosen_layers(network.layers(), outside, stage.include, stage.exclude)
    for layer in layers:
        if layer.table and needs_of(stage):
            raise UsageError(
                f"{layer.name} is an embedding, whose input has no statistics; prune it with --score l1 --solver none."
            )
        if needs_of(stage) & GRADIENTS and stage.gradient == "block" and any(layer is other for other in outside):
            raise UsageError(f"{layer.name} lies outside of the blocks; score it with --gradient loss.")
    return layers


def amounts_of(amounts: Mapping[str, int], places: Mapping[str, int], kind: str) -> dict[str, int]:
    """Returns how much goes from each of some places; 0 where nothing is said.

    Args:
        amounts: What is said, by name.
        places: The most that can go from each place, by name.
        kind: What the places are called.

    Raises:
        UsageError: There is no place of a name, or it can't give as much.
    """
    for name, amount in amounts.items():
        if name not in places:
            raise UsageError(
                f"amounts names {name}, which is no {kind} that the stage is about.{did_you_mean(name, places)}"
            )
        if amount > places[name]:
            raise UsageError(f"amounts takes {amount:,} from {name}, which can give {places[name]:,}.")
    return {name: amounts.get(name, 0) for name in places}


def chosen_layers(
    inside: list[Layer], outside: list[Layer], include: Sequence[str], exclude: Sequence[str]
) -> list[Layer]:
    """Returns the layers that globs choose, each weight once.

    Args:
        inside: Layers that are chosen unless something is said.
        outside: Layers that have to be named.
        include, exclude: Globs on names.

    Raises:
        UsageError: A glob matches nothing, or nothing is left.
    """
    everything = [layer.name for layer in inside + outside]
    for pattern in (*include, *exclude):
        if not any(fnmatchcase(name, pattern) for name in everything):
            raise UsageError(
                f"'{pattern}' matches no layer; names look like '{everything[0]}' "
                "(secateur inspect lists them), and globs look like '*q_proj'."
            )
    if include:
        inside = [layer for layer in inside if any(fnmatchcase(layer.name, p) for p in include)]
    named = [layer for layer in outside if any(_names(p, layer) for p in include)]
    chosen: dict[tuple[int, int | None], Layer] = {}
    for layer in inside + named:
        if not any(fnmatchcase(layer.name, pattern) for pattern in exclude):
            chosen.setdefault(layer.identity, layer)  # a tied weight is pruned once
    if not chosen and not include and not exclude:
        raise UsageError("the blocks have no linear layer to prune; what is factorized has to be pruned before that.")
    if not chosen:
        raise UsageError("--include and --exclude leave no layer to prune.")
    return list(chosen.values())


def chosen_groups(groups: Sequence[UnitGroup], include: Sequence[str], exclude: Sequence[str]) -> list[UnitGroup]:
    """Returns the groups that globs choose, by their own names or those of layers whose outputs are units of theirs.

    Raises:
        UsageError: A glob matches nothing, or nothing is left.
    """
    names = [_names_of(group) for group in groups]
    known = {*chain(*names), *(name for group in groups[:1] for name, _ in group.network.model.named_modules() if name)}
    for pattern in (*include, *exclude):
        if not _fits(pattern, known):
            raise UsageError(
                f"'{pattern}' matches no layer and no group of units; names look like '{names[0][-1]}' and "
                f"'{names[0][0]}' (secateur inspect --units lists groups)."
            )
    chosen = [
        group
        for group, some in zip(groups, names, strict=True)
        if (not include or any(_fits(pattern, some) for pattern in include))
        and not any(_fits(pattern, some) for pattern in exclude)
    ]
    if not chosen:
        raise UsageError("--include and --exclude leave no group of units to prune.")
    return chosen


def _names_of(group: UnitGroup) -> list[str]:
    parts = [part.name for part in group.produces]
    return [group.name, *parts, *(module for module in (part.rpartition(".")[0] for part in parts) if module)]


def _fits(pattern: str, names: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for name in names)


def _names(pattern: str, layer: Layer) -> bool:
    """Whether a glob names a layer outside of the blocks, rather than just sweeping over it ('*')."""
    return fnmatchcase(layer.name, pattern) and layer.name.rpartition(".")[2] in pattern


def check_pattern(layers: Sequence[Layer], stage: Prune) -> None:
    """Raises PatternError before any work is done if an N:M pattern doesn't fit a layer."""
    if stage.pattern is not None:
        Pattern.parse(stage.pattern).check_all({layer.name: layer.shape[1] for layer in layers})
