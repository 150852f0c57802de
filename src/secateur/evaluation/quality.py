"""Quality: perplexity, and how near a model stays to the dense one, on the same windows at the same time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from secateur.calibration.activations import IN_MEMORY, Storage
from secateur.calibration.inputs import model_inputs, predicted_ids
from secateur.calibration.runner import BlockRunner
from secateur.calibration.windows import Windows
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


def measure(
    networks: Sequence[Network], windows: Windows, progress: Progress, storage: Storage = IN_MEMORY
) -> list[Quality]:
    """Passes each window through all models in turn; the first is the dense one that the others are held to.

    Only one window's outputs are in memory at a time. Streamed networks take all windows through block by block
    first, and keep the hidden states.

    Args:
        networks: At least one; all with the same vocabulary if they predict tokens.
        windows: What to evaluate on.
        progress: Shows progress.
        storage: Where streamed networks' hidden states may be kept.

    Returns:
        One record per network. `kl`, `agreed` and `cosine` of the first are of itself: 0, all, 1.

    Raises:
        SecateurError: The models' outputs have different shapes and can't be compared.
    """
    found = [Quality() for _ in networks]
    predicts = all(network.generates for network in networks)
    with torch.inference_mode(), ExitStack() as stack:
        passes = [
            stack.enter_context(outputs(network, windows, progress, storage, f"evaluation-{number}"))
            for number, network in enumerate(networks)
        ]
        for number in progress.track(range(len(windows)), "evaluating"):
            dense = passes[0](number)
            for output_of, network, quality in zip(passes, networks, found, strict=True):
                output = dense if network is networks[0] else output_of(number)
                if output.shape != dense.shape:
                    raise SecateurError(
                        f"{network.source.name} gives {tuple(output.shape)} where {networks[0].source.name} gives "
                        f"{tuple(dense.shape)}; their vocabularies differ, so KL makes no sense."
                    )
                if predicts:
                    ids = predicted_ids(network, windows.one(number))[0]
                    _predictions(quality, output, dense, ids, windows.given)
                else:
                    quality.count += output.shape[0]
                    quality.cosine += float(F.cosine_similarity(output, dense, dim=-1).sum(dtype=torch.float64))
    return found


@contextmanager
def outputs(
    network: Network, windows: Windows, progress: Progress, storage: Storage = IN_MEMORY, name: str = "outputs"
) -> Iterator[Callable[[int], Tensor]]:
    """Gives a function from a window's number to the model's first output: (positions, width), float32.

    Args:
        network: The model; a streamed one takes all windows through its blocks first.
        windows: What to feed it.
        progress: Shows progress.
        storage: Where a streamed network's hidden states may be kept.
        name: Of those hidden states in files.
    """
    if network.store is None:

        def output_of(number: int) -> Tensor:
            first, others = model_inputs(network, windows.one(number))
            return _flat(network.model(first, **others)[0])

        yield output_of
        return
    runner = BlockRunner(network, windows, "auto", storage, name, per_batch=1)
    try:
        for block in progress.track(range(len(network.blocks)), "streaming"):
            with network.resident(block):
                runner.advance(lambda: None)
            runner.hidden.forget()
        yield lambda number: _flat(runner.output(number))
    finally:
        runner.hidden.close()


def _flat(output: Tensor) -> Tensor:
    return output.float().flatten(0, -2)


def _predictions(quality: Quality, logits: Tensor, dense: Tensor, ids: Tensor, given: int) -> None:
    """Adds one window's figures, less those of the first `given` tokens.

    logits, dense: (positions, vocabulary); ids: (positions,).
    """
    same = logits is dense
    targets, logits, dense = ids[given:], logits[given - 1 :], dense[given - 1 :]
    for start in range(0, len(targets), POSITIONS):
        part = slice(start, min(start + POSITIONS, len(targets)))
        log_q = F.log_softmax(logits[part], dim=-1)
        quality.count += log_q.shape[0]
        quality.nll += float(F.nll_loss(log_q, targets[part], reduction="sum"))
        if same:
            quality.agreed += log_q.shape[0]
            continue
        log_p = F.log_softmax(dense[part], dim=-1)
        quality.agreed += int((log_q.argmax(-1) == log_p.argmax(-1)).sum())
        quality.kl += float((log_p.exp() * (log_p - log_q)).sum(dtype=torch.float64))
