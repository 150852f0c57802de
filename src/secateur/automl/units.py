"""A search over how many neurons each MLP gives, and which halves of layers go as a whole."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from secateur.automl.database import LevelDatabase, database_about, entry_bytes
from secateur.automl.space import Levels, Place, Space
from secateur.automl.stitched import Stitched
from secateur.calibration.windows import Windows
from secateur.errors import UsageError
from secateur.evaluation.costs import costs, unit_costs
from secateur.network.inner_units import head_dim
from secateur.network.network import Network
from secateur.network.unit_group import Halves, UnitGroup
from secateur.network.units import unit_groups
from secateur.progress import Progress
from secateur.recipe import Prune, Recipe, Search, Stage
from secateur.structure.fitting import adds_plainly
from secateur.structure.job import Job
from secateur.structure.latency import unit_seconds
from secateur.structure.levels import UnitLevel, solve_unit_levels

PARTS = 16  # of an MLP's neurons that go one by one


@dataclass
class UnitSearch:
    """What a search over neurons and halves of layers works on.

    Attributes:
        space: What is chosen from.
        stitched: The model, whose layers are exchanged for those of a candidate: what a unit gives is no longer read,
            which is what cutting it comes to.
    """

    network: Network
    groups: dict[str, UnitGroup]
    space: Space
    stitched: Stitched

    @classmethod
    def prepared(
        cls,
        network: Network,
        recipe: Recipe,
        stage: Prune,
        search: Search,
        windows: Windows,
        root: Path,
        progress: Progress,
    ) -> UnitSearch:
        """Solves what the level database doesn't have yet, and returns the search; see `WeightSearch.prepared`.

        Raises:
            UsageError: The target can't be reached, or the model adds what its halves give behind a norm.
        """
        measure = "params" if stage.params is not None else "macs"
        goal = float(getattr(stage, measure))
        _check(network)
        solved = Prune(
            unit="neuron",
            params=goal,  # levels serve all targets
            damping=stage.damping,
            gradient="loss" if search.losses == "loss" else "block",
        )
        first = costs(network, windows.length)
        job = Job(network, solved, windows, recipe.calibration, recipe.seed, progress, first)
        neurons = _by_block(unit_groups(network, "neuron"))
        attentions = _by_block(_attention_outputs(network)) if search.halves else {}
        ordered = [
            group
            for block in range(len(network.blocks))
            for side in (attentions, neurons)
            if (group := side.get(block)) is not None
        ]
        levels = {group.name: _amounts(group, stage, search.halves) for group in ordered}
        database = LevelDatabase.of(root, database_about(network, recipe, solved, search, windows))
        database.check_room(
            sum(
                _entry_bytes(group, amount)
                for group in ordered
                for amount in levels[group.name]
                if (group.name, amount) not in database
            )
        )
        for group in ordered:
            layer = group.readers[0].layer
            if (group.name, 0) not in database:
                bias = getattr(layer.module, "bias", None)
                database.put(group.name, 0, layer.matrix(), 0.0, None if bias is None else bias.detach())
        missing = {
            name: [amount for amount in amounts if (name, amount) not in database] for name, amounts in levels.items()
        }

        def take(group: UnitGroup, amount: int, level: UnitLevel) -> None:
            dtype = group.readers[0].layer.parameter.dtype
            bias = None if level.bias is None else level.bias.to(dtype)
            database.put(group.name, amount, level.W.to(dtype), level.loss, bias)

        if any(missing.values()):
            solve_unit_levels(job, ordered, missing, take)
        dense, saves = _savings(
            network, ordered, levels, windows, "latency" in {*search.weigh, *search.limit, *search.front}
        )
        places = []
        for at, group in enumerate(ordered):
            amounts = levels[group.name]
            losses = tuple(database.loss(group.name, amount) for amount in amounts)
            depth, is_mlp = at / max(1, len(ordered) - 1), float(group.unit == "neuron")
            features = (depth, depth * depth, is_mlp, depth * is_mlp)
            taken = tuple(round(saved) for saved in saves[group.name][measure])
            places.append(Place(group.name, amounts, taken, losses, features, saves[group.name]))
        whole = int(dense[measure])
        space = Space(
            places,
            math.ceil(whole - goal * whole),
            dense=dense,
            target=lambda cost: f"--{measure} {1 - cost / whole:.3g}",
        )
        by_name = {group.name: group for group in ordered}
        stitched = Stitched({name: group.readers[0].layer for name, group in by_name.items()}, database)
        return cls(network, by_name, space, stitched)

    def stages(self, levels: Levels, stage: Prune) -> tuple[Stage, ...]:
        """Returns the stages that remove a candidate's halves and neurons."""
        amounts = self.space.amounts(levels)
        found: dict[str, dict[str, int]] = {"attention": {}, "mlp": {}, "neuron": {}}
        for name, amount in amounts.items():
            group = self.groups[name]
            assert group.block is not None
            block = self.network.block_name(group.block)
            if group.unit != "neuron":
                found["attention"][block] = 1
            elif amount == group.count:
                found["mlp"][block] = 1
            else:
                found["neuron"][name] = amount
        stages = [
            Stage(prune=Prune(unit=unit, amounts=some)) for unit, some in found.items() if some and unit != "neuron"
        ]
        if found["neuron"]:
            stages.append(
                Stage(prune=stage.model_copy(update={"params": None, "macs": None, "amounts": found["neuron"]}))
            )
        return tuple(stages)


def _entry_bytes(group: UnitGroup, amount: int) -> int:
    """Returns the bytes that a group's reader takes in the database at an amount."""
    layer = group.readers[0].layer
    left = 1 - amount / group.count
    return entry_bytes(layer.weights, round(left * layer.weights), layer.parameter.element_size())


def _check(network: Network) -> None:
    if not adds_plainly(network):
        raise UsageError(
            f"search: {network.architecture} has a norm behind what its halves give, so candidates can't be put "
            "together; prune it with --allocation global."
        )


def _by_block(groups: Iterable[UnitGroup]) -> dict[int, UnitGroup]:
    return {group.block: group for group in groups if group.block is not None}


def _attention_outputs(network: Network) -> list[UnitGroup]:
    """Returns each attention's heads, of which all go or none."""
    return [group for group in unit_groups(network, "head") if group.name.endswith("/head")]


def _amounts(group: UnitGroup, stage: Prune, halves: bool) -> tuple[int, ...]:
    """Returns how many units may go: multiples of a sixteenth of an MLP's neurons, and all of them with the half."""
    if group.unit != "neuron":
        return (0, group.count)
    step = max(stage.round_to, group.count // PARTS // stage.round_to * stage.round_to)
    some = tuple(range(0, group.count - max(1, stage.min_units) + 1, step))
    return (*some, group.count) if halves else some


def _savings(
    network: Network, groups: Sequence[UnitGroup], levels: Mapping[str, Sequence[int]], windows: Windows, timed: bool
) -> tuple[dict[str, float], dict[str, dict[str, tuple[float, ...]]]]:
    """Returns what the model has by each measure, and by group what each of its levels takes off."""
    length = windows.length
    whole = costs(network, length)
    dense: dict[str, float] = {"params": whole.parameters, "macs": whole.macs, "memory": whole.bytes}
    dense["memory"] += sum(_cache(group, length) for group in _attention_outputs(network))
    kinds = {"neuron": "mlp", "head": "attention"}
    names = {"params": "parameters", "macs": "macs", "memory": "bytes"}
    halves = {
        (measure, kind): _half_costs(network, kinds[kind], name, length)
        for measure, name in names.items()
        for kind in {group.unit for group in groups if group.count in levels[group.name]}
    }
    seconds: dict[str, float] = {}
    if timed:
        dense["latency"], seconds = unit_seconds(network, groups, windows.one(0))
    saves: dict[str, dict[str, tuple[float, ...]]] = {}
    for group in groups:
        assert group.block is not None
        saves[group.name] = {}
        for measure, name in names.items():
            each = float(unit_costs(group, name, length).double().mean())
            half = halves.get((measure, group.unit), {}).get(group.block, 0.0)
            if measure == "memory" and group.unit == "head":
                half += _cache(group, length)
            saves[group.name][measure] = tuple(
                half if amount == group.count else each * amount for amount in levels[group.name]
            )
        if timed:
            saves[group.name]["latency"] = tuple(seconds[group.unit] * amount for amount in levels[group.name])
    return dense, saves


def _cache(group: UnitGroup, length: int) -> float:
    """Returns the bytes of an attention's keys and values of a window."""
    network = group.network
    size: int = network.model.dtype.itemsize
    return 2 * group.count * head_dim(network) * length * size


def _half_costs(network: Network, unit: str, what: str, length: int) -> dict[int, float]:
    """Returns what each block's half costs, by block."""
    found: dict[int, float] = {}
    for group in unit_groups(network, unit):
        assert isinstance(group, Halves)
        found |= dict(zip(group.blocks, map(float, unit_costs(group, what, length).tolist()), strict=True))
    return found
