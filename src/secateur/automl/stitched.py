"""The dense model with layers exchanged for entries of the level database."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from secateur.automl.database import LevelDatabase
from secateur.automl.space import Levels, Space
from secateur.network.network import Layer


class Stitched:
    """A model whose layers are exchanged for entries of the database, only those that differ from what stands there."""

    def __init__(self, layers: Mapping[str, Layer], database: LevelDatabase) -> None:
        """
        Args:
            layers: The model's layers, by the names of the places.
            database: What they are exchanged for.
        """
        self.layers, self.database = layers, database
        self.standing: dict[str, int] = {}

    def stand(self, space: Space, levels: Levels) -> None:
        """Puts a candidate together."""
        for place, level in zip(space.places, levels, strict=True):
            name, amount = place.name, place.amounts[level]
            if self.standing.get(name) != amount:
                layer = self.layers[name]
                W, bias = self.database.get(name, amount)
                with torch.no_grad():
                    layer.matrix().copy_(W)
                    if bias is not None:
                        layer.module.bias.copy_(bias)  # type: ignore[union-attr, operator]
                self.standing[name] = amount
