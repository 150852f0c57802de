"""A search over how many single weights each layer gives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from secateur.automl.database import LevelDatabase, database_about, entry_bytes
from secateur.automl.ladder import exact, levels_of, weight_space
from secateur.automl.space import Levels, Space
from secateur.automl.stitched import Stitched
from secateur.calibration.loss import output_sensitivity
from secateur.calibration.statistics import Statistics
from secateur.calibration.windows import Windows
from secateur.layer_choice import select_layers
from secateur.layer_work import solve_levels
from secateur.linear_algebra import row_errors
from secateur.network.network import Layer, Network
from secateur.progress import Progress
from secateur.recipe import Prune, Recipe, Search, Stage


@dataclass
class WeightSearch:
    """What a search over single weights works on.

    Attributes:
        space: What is chosen from.
        stitched: The model, whose layers are exchanged for those of a candidate.
    """

    layers: list[Layer]
    sparsity: float
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
    ) -> WeightSearch:
        """Solves what the level database doesn't have yet, and returns the search.

        Args:
            network: The dense model; candidates are put together in it.
            recipe: The run.
            stage: What is searched for: its target, and which layers.
            search: How levels are solved.
            windows: Calibration windows.
            root: Where level databases are kept.
            progress: Shows progress.

        Raises:
            UsageError: The target is no sparsity, or the levels can't reach it.
        """
        assert stage.sparsity is not None
        solved = Prune(
            unit="weight",
            sparsity=stage.sparsity,
            score=stage.score,
            solver=search.level_solver,
            include=stage.include,
            exclude=stage.exclude,
            damping=stage.damping,
        )
        layers = select_layers(network, solved)
        sizes = {layer.name: layer.weights for layer in layers}
        about = database_about(network, recipe, solved, search, windows)
        database = LevelDatabase.of(root, about)
        levels = levels_of(sizes, stage.sparsity)
        wide = {layer.name: layer.parameter.element_size() for layer in layers}
        database.check_room(
            sum(
                entry_bytes(sizes[name], sizes[name] - amount, wide[name])
                for name, amounts in levels.items()
                for amount in amounts
                if (name, amount) not in database
            )
        )
        for layer in layers:
            if levels[layer.name][0] == 0 and (layer.name, 0) not in database:
                database.put(layer.name, 0, layer.matrix(), 0.0)
        missing = {
            name: [amount for amount in amounts if (name, amount) not in database] for name, amounts in levels.items()
        }
        sensitivity: Mapping[str, Tensor] = {}
        if any(missing.values()) and search.losses == "loss":
            sensitivity = output_sensitivity(network, layers, windows, recipe.calibration.compute, progress)

        def take(layer: Layer, zeros: int, W: Tensor, pruned: Tensor, statistics: Statistics) -> None:
            errors, known = row_errors(W - pruned, statistics.G), sensitivity.get(layer.name)
            if known is None:
                loss = float(errors.sum() / row_errors(W, statistics.G).sum().clamp_min(1e-30))
            else:
                loss = float((known.to(errors.device) * errors).sum() / statistics.count)
            database.put(layer.name, zeros, pruned.to(layer.parameter.dtype), loss)

        given = (windows, recipe.calibration, recipe.seed, progress)
        solve_levels(network, solved, *given, missing, take)
        space = weight_space(layers, stage.sparsity, database.loss)
        return cls(layers, stage.sparsity, space, Stitched({layer.name: layer for layer in layers}, database))

    def stages(self, levels: Levels, stage: Prune) -> tuple[Stage, ...]:
        """Returns the stage that gives each layer a candidate's zeros, exact to the weight in all."""
        sizes = {layer.name: layer.weights for layer in self.layers}
        amounts = exact(self.space.amounts(levels), sizes, self.sparsity)
        return (Stage(prune=stage.model_copy(update={"sparsity": None, "amounts": amounts})),)
