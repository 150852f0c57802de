"""How often a sequence classifier is right on a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch.nn import functional

from secateur.calibration.data import text_tokenizer, window_length
from secateur.calibration.tables import Table
from secateur.errors import UsageError
from secateur.network.classifier import is_sequence_classifier
from secateur.network.network import Network
from secateur.progress import Progress
from secateur.result import Comparison, Metrics

ROWS = 32  # at a time


def check_classes(networks: Sequence[Network], table: str) -> None:
    """Raises UsageError if one of the models tells no classes apart, so that a table says nothing of it."""
    for network in networks:
        if not is_sequence_classifier(network):
            raise UsageError(
                f"{network.architecture} tells no classes apart, so a table ({table}) says nothing of it; "
                "train it on one in a stage, or give a text."
            )


def add_accuracy(
    comparison: Comparison, networks: Sequence[Network], table: Table, length: int | None, progress: Progress
) -> Comparison:
    """Adds accuracy and loss on a table to a comparison; a model without a head for classes gets none.

    Args:
        comparison: Of the models.
        networks: The models, in its order.
        table: The table.
        length: Tokens of a row at most.
        progress: Shows progress.
    """
    known = [
        _measured(metrics, network, table, length, progress)
        for metrics, network in zip((comparison.dense, *comparison.others), networks, strict=True)
    ]
    return replace(comparison, dense=known[0], others=tuple(known[1:]))


@torch.inference_mode()
def _measured(metrics: Metrics, network: Network, table: Table, length: int | None, progress: Progress) -> Metrics:
    if not is_sequence_classifier(network):
        return replace(metrics, examples=len(table))
    tokenizer, size = text_tokenizer(network, table.source), window_length(network, length)
    right, loss = 0, 0.0
    for start in progress.track(range(0, len(table), ROWS), "evaluating"):
        batch = table.batch(range(start, min(start + ROWS, len(table))), tokenizer, size)
        labels = batch.pop("labels")
        logits = network.model(**batch).logits.float()
        right += int((logits.argmax(-1) == labels).sum())
        loss += float(functional.cross_entropy(logits, labels, reduction="sum"))
    return replace(metrics, accuracy=right / len(table), loss=loss / len(table), examples=len(table))
