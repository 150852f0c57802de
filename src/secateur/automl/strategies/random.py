"""Random search: what every other strategy has to beat."""

from __future__ import annotations

import numpy as np

from secateur.automl.space import Levels
from secateur.automl.strategies.rounds import Rounds


class Random(Rounds):
    """Levels drawn evenly, moved until the budget is met."""

    name = "random"
    about = "levels drawn at random"
    fronts = True

    def draw(self, random: np.random.Generator) -> Levels:
        levels = [int(random.integers(len(place.costs))) for place in self.space.places]
        return self.space.settled(levels, random)
