"""A search over how many neurons each MLP gives, and which halves of layers go as a whole."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from secateur.automl.database import LevelDatabase, database_about
from secateur.automl.judge import Stitched
from secateur.automl.space import Levels, Place, Space
from secateur.calibration.windows import Windows
from secateur.errors import UsageError
from secateur.evaluation.costs import costs, unit_costs
from secateur.network.network import Network
from secateur.network.units import Halves, UnitGroup, unit_groups
from secateur.progress import Progress
from secateur.recipe import Prune, Recipe, Search, Stage
from secateur.structure.inner import UnitLevel, adds_plainly, solve_unit_levels
from secateur.structure.job import Job

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
        assert stage.params is not None
        _check(network)
        solved = Prune(
            unit="neuron",
            params=stage.params,
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
        halves = {unit: _half_costs(network, unit) for unit in ("attention", "mlp")} if search.halves else {}
        places = []
        for at, group in enumerate(ordered):
            assert group.block is not None
            unit = "mlp" if group.unit == "neuron" else "attention"
            each = float(unit_costs(group, "parameters", windows.length).double().mean())
            whole = halves.get(unit, {}).get(group.block, 0)
            amounts = levels[group.name]
            taken = tuple(whole if amount == group.count else round(each * amount) for amount in amounts)
            losses = tuple(database.loss(group.name, amount) for amount in amounts)
            depth = at / max(1, len(ordered) - 1)
            features = (depth, depth * depth, float(unit == "mlp"), depth * (unit == "mlp"))
            places.append(Place(group.name, amounts, taken, losses, features))
        space = Space(places, math.ceil(first.parameters - stage.params * first.parameters))
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
            stages.append(Stage(prune=stage.model_copy(update={"params": None, "amounts": found["neuron"]})))
        return tuple(stages)


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


def _half_costs(network: Network, unit: str) -> dict[int, int]:
    """Returns the parameters of each block's half, by block."""
    found: dict[int, int] = {}
    for group in unit_groups(network, unit):
        assert isinstance(group, Halves)
        each = unit_costs(group, "parameters", 1).tolist()
        found |= dict(zip(group.blocks, map(int, each), strict=True))
    return found
