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
from secateur.calibration.precision import half_in_float32
from secateur.calibration.runner import BlockRunner
from secateur.calibration.windows import Windows
from secateur.errors import SecateurError, UsageError
from secateur.evaluation.passages import Passage, Reading, agreeing, original_ids, shared_tokens
from secateur.network.network import Network
from secateur.progress import Progress

POSITIONS = 256  # positions whose distributions are held at once


@dataclass
class Quality:
    """Sums over the windows, for one model: over its predicted tokens, and over positions compared with the dense one.

    `bytes` of text are predicted, where models are measured on passages; else they aren't known here: 0.
    """

    count: int = 0
    nll: float = 0.0  # nats
    bytes: int = 0
    compared: int = 0
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
        One record per network. `kl`, `agreed` and `cosine` of the first are of itself: 0, all, 1. Of a model that
        predicts nothing and gives vectors of another width than the first there is no cosine.

    Raises:
        SecateurError: The models predict tokens of different vocabularies.
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
                if output.shape != dense.shape and predicts:
                    raise SecateurError(
                        f"{network.source.name} gives {tuple(output.shape)} where {networks[0].source.name} gives "
                        f"{tuple(dense.shape)}; their vocabularies differ, so KL makes no sense."
                    )
                if predicts:
                    ids = predicted_ids(network, windows.one(number))[0]
                    _predictions(quality, output, dense, ids, windows.given)
                else:
                    quality.count += output.shape[0]
                    if output.shape == dense.shape:  # else nothing says which of its numbers is which
                        _cosines(quality, output, dense)
    return found


def measure_passages(
    networks: Sequence[Network], read: Sequence[Passage], progress: Progress, storage: Storage = IN_MEMORY
) -> list[Quality]:
    """Measures models whose vocabularies differ, each on its own tokens of the same text.

    * `nll`, `count` and `bytes` are over all of a model's own tokens after the first place in each passage that is a
      token's end for all models: the same bytes of text for all. Bits per byte compare; perplexities don't.
    * `kl` and `agreed` are over the tokens that a model shares with the dense one, both distributions normalised over
      these alone, at the `compared` positions at which both read the same token after the same text. Those are all
      positions if both read all of the text alike. Without shared tokens `compared` is 0.
    * `cosine`, of models that don't predict, is over such positions too.

    Args:
        networks: At least one, fed tokens alone; the first is the dense one.
        read: Passages, with a reading per network in the same order.
        progress: Shows progress.
        storage: Where streamed networks' hidden states may be kept.

    Returns:
        One record per network. `kl`, `agreed` and `cosine` of the first are 0: it isn't compared.

    Raises:
        UsageError: A streamed network isn't causal.
        SecateurError: Hidden states have different widths and can't be compared.
    """
    found = [Quality() for _ in networks]
    predicts = all(network.generates for network in networks)
    shared = [None, *(shared_tokens(networks[0], network) for network in networks[1:])]
    origin = [original_ids(network) for network in networks]
    with torch.inference_mode(), ExitStack() as stack:
        passes = [
            stack.enter_context(
                _own_outputs(
                    network, [one.readings[number].ids for one in read], progress, storage, f"passages-{number}"
                )
            )
            for number, network in enumerate(networks)
        ]
        for number in progress.track(range(len(read)), "evaluating"):
            dense = passes[0](number)
            readings = read[number].readings
            for which, (network, quality, reading) in enumerate(zip(networks, found, readings, strict=True)):
                output = passes[which](number) if which else dense
                if predicts:
                    quality.bytes += read[number].bytes
                    _own_predictions(quality, output, reading)
                else:
                    quality.count += output.shape[0]
                columns = shared[which]
                if columns is None:
                    continue
                here, there = agreeing(readings[0], reading, origin[0], origin[which])
                if predicts:
                    predicted = here >= readings[0].predicted
                    _shared_predictions(quality, output, dense, there[predicted] - 1, here[predicted] - 1, columns)
                elif network.model.get_output_embeddings() is not None:
                    _cosines(quality, output[there][:, columns[1]], dense[here][:, columns[0]])
                elif output.shape[1] == dense.shape[1]:
                    _cosines(quality, output[there], dense[here])
                else:
                    raise SecateurError(
                        f"{network.source.name} gives {output.shape[1]} values per token, {networks[0].source.name} "
                        f"{dense.shape[1]}; they can't be compared."
                    )
    return found


@contextmanager
def _own_outputs(
    network: Network, rows: Sequence[Tensor], progress: Progress, storage: Storage, name: str
) -> Iterator[Callable[[int], Tensor]]:
    """`outputs` of token rows of different lengths; a streamed network's are filled up behind, which it can't see."""
    if network.store is None:

        def own(number: int) -> Tensor:
            with half_in_float32(network.model.dtype, network.model.device):
                return _flat(network.model(rows[number][None])[0])

        yield own
        return
    if network.family.objective != "causal":
        raise UsageError(
            f"{network.source.name} is streamed, and sees what comes after a token: it can't be compared with a model "
            "of another vocabulary. Load it whole with --no-stream."
        )
    longest = max(len(row) for row in rows)
    filled = torch.stack([F.pad(row, (0, longest - len(row))) for row in rows])
    with outputs(network, Windows(filled, "passages"), progress, storage, name) as output_of:
        yield lambda number: output_of(number)[: len(rows[number])]


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
            with half_in_float32(network.model.dtype, network.model.device):
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
    quality.compared += len(targets)
    for start in range(0, len(targets), POSITIONS):
        part = slice(start, min(start + POSITIONS, len(targets)))
        log_q = F.log_softmax(logits[part], dim=-1)
        quality.count += log_q.shape[0]
        quality.nll += float(F.nll_loss(log_q, targets[part], reduction="sum"))
        if same:
            quality.agreed += log_q.shape[0]
            continue
        _divergence(quality, F.log_softmax(dense[part], dim=-1), log_q)


def _own_predictions(quality: Quality, logits: Tensor, reading: Reading) -> None:
    """Adds the likelihood of a passage's predicted tokens. logits: (tokens, vocabulary)."""
    targets = reading.ids[reading.predicted :]
    quality.count += len(targets)
    for some, at in zip(targets.split(POSITIONS), logits[reading.predicted - 1 :].split(POSITIONS), strict=False):
        log_q = F.log_softmax(at[: len(some)], dim=-1)
        quality.nll += float(F.nll_loss(log_q, some, reduction="sum"))


def _shared_predictions(
    quality: Quality, logits: Tensor, dense: Tensor, at: Tensor, at_dense: Tensor, columns: tuple[Tensor, Tensor]
) -> None:
    """Adds the divergence over shared tokens: columns of `dense` and of `logits`, at the same places of the text."""
    quality.compared += len(at)
    for some, some_dense in zip(at.split(POSITIONS), at_dense.split(POSITIONS), strict=True):
        log_p = F.log_softmax(dense[some_dense][:, columns[0]], dim=-1)
        _divergence(quality, log_p, F.log_softmax(logits[some][:, columns[1]], dim=-1))


def _divergence(quality: Quality, log_p: Tensor, log_q: Tensor) -> None:
    """Adds KL(p || q) and the agreement of the likeliest tokens. log_p, log_q: (positions, tokens)."""
    quality.agreed += int((log_q.argmax(-1) == log_p.argmax(-1)).sum())
    quality.kl += float((log_p.exp() * (log_p - log_q)).sum(dtype=torch.float64))


def _cosines(quality: Quality, output: Tensor, dense: Tensor) -> None:
    quality.compared += output.shape[0]
    quality.cosine += float(F.cosine_similarity(output, dense, dim=-1).sum(dtype=torch.float64))
