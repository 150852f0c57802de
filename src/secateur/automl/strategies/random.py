"""Random search: what every other strategy has to beat from the same start."""

from __future__ import annotations

import numpy as np

from secateur.automl.space import Levels
from secateur.automl.strategies.rounds import Rounds


class Random(Rounds):
    """A random number of level switches away from the start: one, or as many as there are places, or any between.

    Their number's logarithm is drawn evenly; what was found before says nothing.
    """

    name = "random"
    about = "random level switches of the start"
    fronts = True

    def draw(self, random: np.random.Generator) -> Levels:
        return self.space.switched(self.start, random, int(len(self.space) ** random.random()))
