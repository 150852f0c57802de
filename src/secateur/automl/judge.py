"""What a candidate is worth: the model is put together from the level database, and held to the dense one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from secateur.automl.database import LevelDatabase
from secateur.automl.space import Levels, Space
from secateur.calibration.inputs import model_inputs
from secateur.calibration.windows import Windows
from secateur.errors import UsageError
from secateur.network.network import Layer, Network
from secateur.progress import Progress

POSITIONS = 256  # whose distributions are held at once


class Judge:
    """Judges candidates by minus the mean KL divergence from the dense model, in nats per position.

    The dense model's distributions are computed once and kept in a file that is mapped into memory, in float16.
    """

    def __init__(self, network: Network, windows: Windows, tokens: int, file: Path, progress: Progress) -> None:
        """
        Args:
            network: The dense model.
            windows: What is read; as many windows as hold `tokens`.
            tokens: The most that is judged on.
            file: Where the dense distributions are kept.
            progress: Shows progress.

        Raises:
            UsageError: The windows hold fewer tokens.
        """
        self.network, self.length = network, windows.length
        number = -(-tokens // windows.length)
        if number > len(windows):
            raise UsageError(
                f"candidates are judged on {tokens:,} tokens, and the calibration has {windows.tokens:,}; give more "
                "--samples, or fewer --tokens."
            )
        self.batches = windows.part(0, number).batches(1)
        first = self._logits(0)
        shape = (number, *first.shape)
        self.dense = np.lib.format.open_memmap(file, "w+", np.float16, shape)
        for place in progress.track(range(number), "the dense model reads"):
            logits = first if place == 0 else self._logits(place)
            self.dense[place] = logits.log_softmax(-1).to(torch.float16).numpy()

    @torch.inference_mode()
    def _logits(self, number: int) -> Tensor:
        """(positions, vocabulary) float32."""
        first, others = model_inputs(self.network, self.batches[number])
        output: Tensor = self.network.model(first.to(self.network.device), **others)[0]
        return output[0].float().cpu()

    @torch.inference_mode()
    def worth(self, tokens: int) -> float:
        """Returns minus the divergence of the model as it is, on the first tokens."""
        total, count = 0.0, 0
        for number in range(-(-tokens // self.length)):
            logits = self._logits(number)
            for start in range(0, len(logits), POSITIONS):
                wanted = torch.from_numpy(self.dense[number, start : start + POSITIONS]).float()
                ours = logits[start : start + POSITIONS].log_softmax(-1)
                total += float((wanted.exp() * (wanted - ours)).sum())
            count += len(logits)
        return -total / count


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
