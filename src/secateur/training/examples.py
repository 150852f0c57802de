"""What recovery trains on: windows of text, and what is to be predicted in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import Dataset
from transformers import DataCollatorForLanguageModeling, DataCollatorForPermutationLanguageModeling

from secateur.calibration.data import text_tokenizer, window_length
from secateur.calibration.inputs import model_inputs, predicted_ids
from secateur.calibration.loaders import Loaded, TrainingData
from secateur.calibration.tables import Table
from secateur.calibration.windows import Windows
from secateur.errors import UsageError
from secateur.network.classifier import is_sequence_classifier
from secateur.network.network import Network

IGNORED = -100  # a label that nothing is to be predicted for
MASKED = 0.15  # share of tokens that a masked language model predicts (Devlin et al. 2019)


class Visits(Dataset[tuple[int, int]]):
    """Examples by place, epoch after epoch, each epoch in an order of its own: the place and the epoch of each visit.

    What a batch is made of is looked up when it is put together, and draws nothing from the common source of random
    numbers, so that a run that is taken up in the middle sees what it would have seen.
    """

    def __init__(self, places: Sequence[int], visits: int, seed: int | None) -> None:
        """
        Args:
            places: The examples.
            visits: How many there are over all epochs.
            seed: Of the orders; None keeps theirs.
        """
        self.places, self.visits, self.seed = list(places), visits, seed
        self._order: tuple[int, list[int]] = (-1, [])

    def __len__(self) -> int:
        return self.visits

    def __getitem__(self, index: int) -> tuple[int, int]:
        epoch, at = divmod(index, len(self.places))
        if self.seed is None:
            return self.places[at], epoch
        if self._order[0] != epoch:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
            self._order = epoch, torch.randperm(len(self.places), generator=generator).tolist()
        return self.places[self._order[1][at]], epoch


class TextExamples:
    """Windows as a language model trains on them: by the next token, by masked ones, or by permutations of them."""

    def __init__(self, network: Network, windows: Windows, fixed: bool = False, seed: int = 0) -> None:
        """
        Args:
            network: The model.
            windows: The windows, all of one length.
            fixed: Whether a window is masked or permuted the same way in every epoch.
            seed: Of masks and permutations.

        Raises:
            UsageError: The model has no head that predicts tokens, or its tokenizer no token for a mask.
        """
        self.network, self.windows, self.fixed, self.seed = network, windows, fixed, seed
        self.objective = network.family.objective
        self.collate: Any = None
        if self.objective in ("encoder", "permutation"):
            if network.model.get_output_embeddings() is None:
                raise UsageError(
                    f"{network.architecture} has no head that predicts tokens, so there is nothing to train on text; "
                    "load a checkpoint with its language model's head."
                )
            if getattr(network.tokenizer, "mask_token", None) is None:
                raise UsageError(f"the tokenizer of {network.source.name} has no mask token, by which it would train.")
            if self.objective == "encoder":
                self.collate = DataCollatorForLanguageModeling(network.tokenizer, mlm_probability=MASKED)
            else:
                if windows.length % 2:
                    raise UsageError(
                        f"{network.architecture} trains on windows of an even length, not {windows.length}."
                    )
                self.collate = DataCollatorForPermutationLanguageModeling(network.tokenizer)
        elif network.model.get_output_embeddings() is None:
            raise UsageError(
                f"{network.architecture} has no head that predicts tokens, so there is nothing to train on text."
            )

    def __len__(self) -> int:
        return len(self.windows)

    def batch(self, places: Sequence[int], epochs: Sequence[int] | None = None) -> dict[str, Tensor]:
        """Returns the model's arguments, `labels` (what each place of its output is to be, or IGNORED) and `places`.

        Args:
            places: Which windows.
            epochs: The epoch in which each is visited, which masks and permutations depend on; None stands for 0.
        """
        index = torch.as_tensor(places)
        part = replace(
            self.windows,
            ids=self.windows.ids[index],
            features=None if self.windows.features is None else self.windows.features[index],
            lengths=None if self.windows.lengths is None else self.windows.lengths[index],
            bytes=None,
        )
        if self.objective in ("encoder", "permutation"):
            drawn = [0] * len(places) if self.fixed or epochs is None else epochs
            return {**self._collated(part.ids, places, drawn), "places": index}
        first, others = model_inputs(self.network, part)
        labels = torch.full_like(predicted := predicted_ids(self.network, part), IGNORED)
        labels[:, part.given - 1 : -1] = predicted[:, part.given :]
        if part.lengths is not None:
            beyond = torch.arange(labels.shape[1]) >= part.lengths[:, None] - 1
            labels[beyond] = IGNORED
        return {self.network.model.main_input_name: first, **others, "labels": labels, "places": index}

    def _collated(self, ids: Tensor, places: Sequence[int], epochs: Sequence[int]) -> dict[str, Tensor]:
        """Returns windows with what is to be predicted in them masked."""
        parts = []
        with torch.random.fork_rng(devices=[]):
            for one, place, epoch in zip(ids, places, epochs, strict=True):
                torch.manual_seed((self.seed * 1009 + epoch) * 1_000_003 + place)
                parts.append(self.collate([{"input_ids": one}]))
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


class TableExamples:
    """Rows of a table as a sequence classifier trains on them."""

    def __init__(self, network: Network, table: Table, length: int) -> None:
        """
        Args:
            network: The model.
            table: The table.
            length: Tokens of a row at most.

        Raises:
            CalibrationError: The model has no tokenizer.
        """
        self.table, self.length = table, length
        self.tokenizer = text_tokenizer(network, table.source)

    def __len__(self) -> int:
        return len(self.table)

    def batch(self, places: Sequence[int], epochs: Sequence[int] | None = None) -> dict[str, Tensor]:
        """Returns the model's arguments, `labels` and `places`; the epochs make no difference."""
        return {**self.table.batch(places, self.tokenizer, self.length), "places": torch.as_tensor(places)}


class LoadedExamples:
    """Rows of a DataLoader, collated as it does; what its collator draws by torch depends on rows and epoch alone."""

    def __init__(self, network: Network, data: Loaded, fixed: bool, seed: int) -> None:
        """
        Args:
            network: The model.
            data: The rows.
            fixed: Whether rows have to come out the same each time.
            seed: Of what the collator draws.

        Raises:
            UsageError: They can't be promised to.
        """
        if fixed:
            raise UsageError(
                "distill: top_k keeps what the teacher says of each row, and a DataLoader may give it differently each "
                "time; leave top_k out."
            )
        self.network, self.data, self.seed = network, data, seed

    def __len__(self) -> int:
        return len(self.data)

    def batch(self, places: Sequence[int], epochs: Sequence[int] | None = None) -> dict[str, Tensor]:
        """Returns the model's arguments, `labels` (what each place of its output is to be) and `places`.

        Raises:
            UsageError: The loader doesn't give labels.
        """
        epoch = 0 if epochs is None else epochs[0]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed((self.seed * 1009 + epoch) * 1_000_003 + places[0])
            found = self.data.batch(places)
        if not isinstance(found, Mapping):
            raise UsageError(
                f"the DataLoader '{self.data.source}' gives a {type(found).__name__}; a dict of the model's arguments "
                "and labels is needed, as transformers' collators give it."
            )
        if "labels" not in found:
            raise UsageError(
                f"the DataLoader '{self.data.source}' gives {', '.join(map(str, found))}, and no labels to learn."
            )
        batch = {name: torch.as_tensor(value) for name, value in found.items()}
        labels = batch["labels"]
        if self.network.family.encoder_decoder is not None and "decoder_input_ids" not in batch:
            batch["decoder_input_ids"] = self.network.model.prepare_decoder_input_ids_from_labels(labels)
        elif self.network.family.objective == "causal" and not is_sequence_classifier(self.network):
            batch["labels"] = functional.pad(labels[:, 1:], (0, 1), value=IGNORED)
        return {**batch, "places": torch.as_tensor(places)}


Examples = TextExamples | TableExamples | LoadedExamples


def examples_of(network: Network, data: TrainingData, length: int | None, fixed: bool, seed: int) -> Examples:
    """Returns what a stage trains on as batches; see `TextExamples`, `TableExamples` and `LoadedExamples`."""
    if isinstance(data, Table):
        return TableExamples(network, data, window_length(network, length))
    if isinstance(data, Loaded):
        return LoadedExamples(network, data, fixed, seed)
    return TextExamples(network, data, fixed, seed)
