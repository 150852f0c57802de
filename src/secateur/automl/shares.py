"""What a search found, as what a pruner takes while a model trains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from secateur.errors import SecateurError, UsageError
from secateur.layer_choice import amounts_of
from secateur.recipe import Prune, Recipe, read_data
from secateur.recipe.prune import DEPTH_UNITS
from secateur.training.trained import trained_groups, weight_layers


def shares(recipe: Recipe | str | Path, model: nn.Module, example_inputs: Any = None) -> dict[str, float]:
    """Returns the share that a recipe's amounts take from each layer, or from each group of units, of a model.

    Args:
        recipe: A recipe with a stage that takes amounts, or the file that a search wrote (`OUT/recipe.yaml`), which of
            a network in memory holds the stages alone.
        model: The dense model that is to be trained.
        example_inputs: As for `TrainingPruner`.

    Raises:
        UsageError: The recipe has no amounts, or takes what isn't removed while a model trains.

    Example:
        >>> allocation = secateur.shares("out/found/recipe.yaml", model)
        >>> pruner = secateur.TrainingPruner(model, Cubic(0.7, 100, 2000, 50), allocation=allocation)
    """
    prunes = recipe.prunes if isinstance(recipe, Recipe) else _read(recipe)
    if whole := [name for stage in prunes if set(stage.kinds) & DEPTH_UNITS for name in stage.amounts or ()]:
        raise UsageError(
            f"the recipe removes whole layers or halves of them ({', '.join(whole)}), which no pruner does while a "
            "model trains; search with --no-halves (halves: false), or carry the recipe out and train what it leaves."
        )
    amounts = prunes[0].amounts if len(prunes) == 1 else None
    if amounts is None:
        raise UsageError("shares are of a recipe with one stage, which takes amounts, such as a search writes.")
    (stage,) = prunes
    if stage.structured:
        _, groups = trained_groups(model, stage.kinds, example_inputs, ())
        places = {group.name: group.count for group in groups}
    else:
        places = {layer.name: layer.weights for layer in weight_layers(model, stage.include, stage.exclude)}
    found = amounts_of(amounts, places, "group of units" if stage.structured else "layer")
    known = {group.name: group.shared or group.name for group in groups} if stage.structured else {}
    return {known.get(name, name): amount / places[name] for name, amount in found.items()}


def _read(file: str | Path) -> tuple[Prune, ...]:
    """Returns the stages of a recipe that prune, which may say nothing but its stages."""
    data = read_data(file)
    if set(data) != {"stages"}:
        return Recipe.read(file).prunes
    try:
        return Recipe.build({**data, "model": "in memory"}).prunes
    except SecateurError as error:
        raise UsageError(f"recipe {file}: {error}") from error
