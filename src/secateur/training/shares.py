"""What a search found, as what a pruner takes while a model trains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from secateur.errors import UsageError
from secateur.layer_choice import amounts_of
from secateur.recipe import Recipe
from secateur.training.trained import trained_groups, weight_layers


def shares(recipe: Recipe | str | Path, model: nn.Module, example_inputs: Any = None) -> dict[str, float]:
    """Returns the share that a recipe's amounts take from each layer, or from each group of units, of a model.

    Args:
        recipe: A recipe whose stages take amounts, or the file that a search wrote (`OUT/recipe.yaml`).
        model: The dense model that is to be trained.
        example_inputs: As for `TrainingPruner`.

    Raises:
        UsageError: The recipe has no amounts, or takes what isn't removed while a model trains.

    Example:
        >>> allocation = secateur.shares("out/found/recipe.yaml", model)
        >>> pruner = secateur.TrainingPruner(model, Cubic(0.7, 100, 2000, 50), allocation=allocation)
    """
    read = recipe if isinstance(recipe, Recipe) else Recipe.read(recipe)
    amounts = read.prunes[0].amounts if len(read.prunes) == 1 else None
    if amounts is None:
        raise UsageError("shares are of a recipe with one stage, which takes amounts, such as a search writes.")
    (stage,) = read.prunes
    if stage.structured:
        _, groups = trained_groups(model, stage.kinds, example_inputs, ())
        places = {group.name: group.count for group in groups}
    else:
        places = {layer.name: layer.weights for layer in weight_layers(model, stage.include, stage.exclude)}
    found = amounts_of(amounts, places, "group of units" if stage.structured else "layer")
    known = {group.name: group.shared or group.name for group in groups} if stage.structured else {}
    return {known.get(name, name): amount / places[name] for name, amount in found.items()}
