"""Quality: perplexity, and how near a model stays to the dense one, on the same windows at the same time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from secateur.calibration.data import Windows
from secateur.errors import SecateurError
from secateur.network.network import Network
from secateur.progress import Progress

POSITIONS = 256  # positions whose distributions are held at once


@dataclass
class Quality:
    """Sums over the windows, for one model; `count` predicted tokens (or compared positions)."""

    count: int = 0
    nll: float = 0.0  # nats
    kl: float = 0.0  # nats
    agreed: int = 0
    cosine: float = 0.0

    @property
    def perplexity(self) -> float:
        """exp of the mean negative log-likelihood; infinite rather than an overflow."""
        mean = self.nll / self.count
        return math.exp(mean) if mean < 700 else math.inf


def measure(networks: Sequence[Network], windows: Windows, progress: Progress) -> list[Quality]:
    """Passes each window through all models in turn; the first is the dense one that the others are held to.

    Only one window's outputs are in memory at a time.

    Args:
        networks: At least one; all with the same vocabulary if they predict tokens.
        windows: What to evaluate on.
        progress: Shows progress.

    Returns:
        One record per network. `kl`, `agreed` and `cosine` of the first are of itself: 0, all, 1.

    Raises:
        SecateurError: The models' outputs have different shapes and can't be compared.
    """
    found = [Quality() for _ in networks]
    predicts = all(network.generates for network in networks)
    with torch.inference_mode():
        for ids in progress.track(windows.ids.split(1), "evaluating"):
            dense = _output(networks[0], ids)
            for network, quality in zip(networks, found, strict=True):
                output = dense if network is networks[0] else _output(network, ids)
                if output.shape != dense.shape:
                    raise SecateurError(
                        f"{network.source.name} gives {tuple(output.shape)} where {networks[0].source.name} gives "
                        f"{tuple(dense.shape)}; their vocabularies differ, so KL makes no sense."
                    )
                if predicts:
                    _predictions(quality, output, dense, ids[0])
                else:
                    quality.count += output.shape[0]
                    quality.cosine += float(F.cosine_similarity(output, dense, dim=-1).sum(dtype=torch.float64))
    return found


def _output(network: Network, ids: Tensor) -> Tensor:
    """The first output for one window: logits or hidden states, (positions, width), float32."""
    output: Tensor = network.model(ids)[0]
    return output.float().flatten(0, -2)


def _predictions(quality: Quality, logits: Tensor, dense: Tensor, ids: Tensor) -> None:
    """Adds one window's figures. logits, dense: (positions, vocabulary); ids: (positions,)."""
    targets = ids[1:]
    for start in range(0, len(targets), POSITIONS):
        part = slice(start, min(start + POSITIONS, len(targets)))
        log_q = F.log_softmax(logits[part], dim=-1)
        quality.count += log_q.shape[0]
        quality.nll += float(F.nll_loss(log_q, targets[part], reduction="sum"))
        if logits is dense:
            quality.agreed += log_q.shape[0]
            continue
        log_p = F.log_softmax(dense[part], dim=-1)
        quality.agreed += int((log_q.argmax(-1) == log_p.argmax(-1)).sum())
        quality.kl += float((log_p.exp() * (log_p - log_q)).sum(dtype=torch.float64))
