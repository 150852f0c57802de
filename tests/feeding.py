"""Random windows that fit the tiny models, and plain forward passes on them."""

from __future__ import annotations

from typing import Any

import torch

from secateur.calibration.inputs import model_inputs
from secateur.calibration.windows import Windows
from secateur.network.families import FAMILIES
from secateur.network.network import Network
from tiny import FRAMES, MELS, VOCABULARY


def random_windows(family: str, number: int, length: int) -> Windows:
    """Returns windows of random tokens, with random sounds for a model that hears."""
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(5, VOCABULARY, (number, length), generator=generator)
    heard = FAMILIES[family].inputs == "audio"
    return Windows(ids, "random", features=torch.randn(number, MELS, FRAMES, generator=generator) if heard else None)


def run(network: Network, windows: Windows, **options: Any) -> Any:
    """Passes windows through the whole model, forward."""
    first, others = model_inputs(network, windows)
    return network.model(first, **others, **options)
