"""Sequence classifiers: a head that tells classes apart on an encoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import transformers

from secateur.errors import UsageError
from secateur.network.network import Network
from secateur.network.quiet import quiet_transformers

ENDING = "ForSequenceClassification"


def is_sequence_classifier(network: Network) -> bool:
    """Whether a model has a head that gives a class for a whole text."""
    return network.architecture.endswith(ENDING)


def class_names(network: Network) -> tuple[str, ...]:
    """Returns the names of a classifier's classes."""
    names = network.model.config.id2label
    return tuple(str(names[number]) for number in range(len(names)))


def with_classes(network: Network, names: Sequence[str], seed: int) -> Network:
    """Returns an encoder with a head for some classes in the place of the one that it has; the new head is random.

    Args:
        network: The model; it shares its weights with the one that is returned.
        names: The classes.
        seed: Of the head.

    Raises:
        UsageError: The model is no encoder, or transformers has no such head for it.
    """
    if network.family.objective not in ("encoder", "permutation") or hasattr(network.model.config, "secateur"):
        raise UsageError(
            f"{network.architecture} gets no head for the classes of a table: that is for encoders as they were "
            f"before units were cut. Load a checkpoint of a ...{ENDING} class."
        )
    config: Any = type(network.model.config).from_dict(network.model.config.to_dict())
    config.id2label = dict(enumerate(names))
    config.label2id = {name: number for number, name in enumerate(names)}
    config.problem_type = "single_label_classification"
    with quiet_transformers(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            model: Any = transformers.AutoModelForSequenceClassification.from_config(config)
        except ValueError as error:
            raise UsageError(f"transformers has no {ENDING} for {network.architecture}.") from error
    model.base_model.load_state_dict(network.base.state_dict(), strict=False)
    model.to(network.model.dtype).eval().requires_grad_(False)
    model.config.architectures = [type(model).__name__]
    found = network.with_model(model)
    found.notes = (*network.notes, f"The model got a head for {', '.join(names)}; it is random before training.")
    return found
