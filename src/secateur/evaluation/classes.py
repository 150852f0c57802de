"""How well a sequence classifier tells the classes of a table apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional

from secateur.calibration.data import text_tokenizer, window_length
from secateur.calibration.precision import half_in_float32
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
    classes: int = network.model.config.num_labels
    confusion, loss = torch.zeros(classes, classes, dtype=torch.float64), 0.0
    for start in progress.track(range(0, len(table), ROWS), "evaluating"):
        batch = table.batch(range(start, min(start + ROWS, len(table))), tokenizer, size)
        labels = batch.pop("labels")
        with half_in_float32(network.model.dtype, network.model.device):
            logits = network.model(**batch).logits.float()
        places = labels * classes + logits.argmax(-1)
        confusion += torch.bincount(places, minlength=classes * classes).view(classes, classes)
        loss += float(functional.cross_entropy(logits, labels, reduction="sum"))
    return replace(
        metrics,
        accuracy=float(confusion.trace() / confusion.sum()),
        f1=f1(confusion),
        matthews=matthews(confusion),
        loss=loss / len(table),
        examples=len(table),
    )


def f1(confusion: Tensor) -> float:
    """Returns the F1 of the second of two classes, as GLUE counts, or of more classes the mean over all.

    Args:
        confusion: (classes, classes) counts, by what was told and what the model says.
    """
    each = 2 * confusion.diagonal() / (confusion.sum(0) + confusion.sum(1)).clamp(min=1)
    return float(each[1] if len(each) == 2 else each.mean())


def matthews(confusion: Tensor) -> float:
    """Returns Matthews' correlation, of any number of classes (Gorodkin 2004, equation 8); 0 where a side is constant.

    Args:
        confusion: As for `f1`.
    """
    told, says, all_of_them = confusion.sum(1), confusion.sum(0), confusion.sum()
    shared = confusion.trace() * all_of_them - told @ says
    spread = (all_of_them**2 - told @ told) * (all_of_them**2 - says @ says)
    return float(shared / spread.sqrt()) if spread > 0 else 0.0
