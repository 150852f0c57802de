"""Policy gradient: a small network sees each place and says where it should stand.

REINFORCE with a baseline (Williams 1992) on the layer states of He et al. 2018, "AMC: AutoML for Model Compression and
Acceleration on Mobile Devices", arXiv 1802.03494: the policy is a normal distribution per place, whose mean is the
level of the best candidate so far plus what the network gives, and whose width is learned. Its draws are moved until
the budget is met, and what was judged in the end is what it learns from, as soon as all of a round have been drawn.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from secateur.automl.space import Levels, Space
from secateur.automl.strategies.base import Judged
from secateur.automl.strategies.rounds import DRAWN, Rounds

HIDDEN = 32
RATE = 0.002
WIDTH = 0.25  # of the distributions in the beginning, in levels: one place of twenty moves in a draw


class Policy(Rounds):
    """Draws from the policy, and shifts it towards what was worth more than the mean of its batch."""

    name = "policy"
    about = "a policy network over the places, trained by REINFORCE"

    def __init__(self, space: Space, start: Levels, rungs: Sequence[int], seed: int) -> None:
        super().__init__(space, start, rungs, seed)
        self.states = torch.tensor([place.features for place in space.places], dtype=torch.float32)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            last = nn.Linear(HIDDEN, 1)
            self.network = nn.Sequential(nn.Linear(self.states.shape[1], HIDDEN), nn.Tanh(), last)
        nn.init.zeros_(last.weight)  # the first draws are around the start
        nn.init.zeros_(last.bias)
        self.log_width = nn.Parameter(torch.tensor(WIDTH).log())
        self.optimizer = torch.optim.Adam([*self.network.parameters(), self.log_width], RATE)
        self.batches: dict[int, list[Judged]] = {}  # draws that have read the same text

    def means(self) -> Tensor:
        """Returns the level that the policy has in mind for each place: (places,)."""
        shift: Tensor = self.network(self.states).squeeze(-1)
        around = self.start if self.best is None else self.best.levels
        return torch.tensor(around, dtype=torch.float32) + shift

    def draw(self, random: np.random.Generator) -> Levels:
        with torch.no_grad():
            means, width = self.means().numpy(), float(self.log_width.exp())
        drawn = np.rint(means + width * random.standard_normal(len(means))).astype(int)
        return self.space.settled(drawn.tolist(), random)

    def tell(self, judged: Judged) -> None:
        super().tell(judged)
        if judged.tokens != self.rungs[0] or not judged.info.get("drawn"):
            return
        batch = self.batches.setdefault(judged.text, [])
        batch.append(judged)
        if len(batch) == DRAWN:
            self._learn([one for one in self.batches.pop(judged.text) if one.value is not None])

    def _learn(self, batch: Sequence[Judged]) -> None:
        if len(batch) < 2:
            return
        taken = torch.tensor([one.levels for one in batch], dtype=torch.float32)  # (batch, places)
        values = torch.tensor([one.value for one in batch], dtype=torch.float32)
        advantages = (values - values.mean()) / values.std().clamp_min(1e-12)
        spread = torch.distributions.Normal(self.means(), self.log_width.exp())
        loss = -(advantages[:, None] * spread.log_prob(taken)).mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
