"""How good a candidate is, once the model is put together from the level database."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from secateur.automl.pieces import pieces_of
from secateur.calibration.data import text_tokenizer, window_length
from secateur.calibration.inputs import model_inputs
from secateur.calibration.precision import products
from secateur.calibration.tables import read_table
from secateur.calibration.windows import Windows
from secateur.errors import UsageError
from secateur.import_path import function_at
from secateur.network.classifier import class_names, is_sequence_classifier
from secateur.network.network import Network
from secateur.progress import Progress
from secateur.recipe import Search

POSITIONS = 16  # whose distributions are compared at once: few enough to stay in the processor's cache
ROWS = 16  # of a table at a time

Known = dict[int, tuple[float, int]]  # what pieces of the text gave: a sum, and over how many it goes
Quality = Callable[[Callable[[], Network], int, int, Known], float]


def windows_of(windows: Windows, tokens: int) -> int:
    """Returns how many windows hold as many tokens.

    Raises:
        UsageError: There are fewer.
    """
    number = -(-tokens // windows.length)
    if number > len(windows):
        raise UsageError(
            f"candidates are judged on {tokens:,} tokens, and the calibration has {windows.tokens:,}; give more "
            "--samples, or fewer --tokens."
        )
    return number


class Judge(ABC):
    """Judges candidates piece by piece of the text; `words` say by what, `sizes` how many tokens each piece has."""

    words: ClassVar[str]
    sizes: Sequence[int]

    def __call__(self, candidate: Callable[[], Network], tokens: int, text: int, known: Known) -> float:
        """Returns the mean over some pieces of the text.

        Args:
            candidate: Gives the model; called only if a piece isn't known yet.
            tokens: How many tokens are read at least.
            text: Which of them, see `pieces_of`.
            known: What the candidate gave on pieces that it has read; those that it reads now are added.
        """
        pieces = pieces_of(self.sizes, tokens, text)
        missing = [number for number in pieces if number not in known]
        network = candidate() if missing else None
        for number in missing:
            assert network is not None
            known[number] = self.piece(network, number)
        total, count = (sum(known[number][what] for number in pieces) for what in (0, 1))
        return total / count

    @abstractmethod
    def piece(self, network: Network, number: int) -> tuple[float, int]:
        """Returns what a model gives on a piece: a sum, and over how many it goes."""


class _OnText(Judge):
    """Reads the calibration's windows, as many as hold the tokens that are asked for."""

    def __init__(self, windows: Windows, tokens: int, compute: str) -> None:
        self.compute = compute
        self.batches = windows.part(0, windows_of(windows, tokens)).batches(1)
        self.sizes = [windows.length] * len(self.batches)

    @torch.inference_mode()
    def logits(self, network: Network, number: int) -> Tensor:
        """(positions, vocabulary), in the dtype that they are computed in."""
        first, others = model_inputs(network, self.batches[number])
        with products(self.compute, network.model.dtype, network.device):
            output: Tensor = network.model(first.to(network.device), **others)[0]
        return output[0].cpu()


class Divergence(_OnText):
    """Minus the mean KL divergence from the dense model, in nats per position.

    The dense model's distributions are computed once and kept in a file that is mapped into memory, in float16.
    """

    words = "minus the mean KL divergence from the dense model on {tokens:,} tokens, in nats"

    def __init__(
        self, network: Network, windows: Windows, tokens: int, compute: str, file: Path, progress: Progress
    ) -> None:
        """
        Args:
            network: The dense model.
            windows: What is read; as many windows as hold `tokens`.
            tokens: The most that is judged on.
            compute: The precision of products, as calibration has it.
            file: Where the dense distributions are kept.
            progress: Shows progress.

        Raises:
            UsageError: The windows hold fewer tokens.
        """
        super().__init__(windows, tokens, compute)
        first = self.logits(network, 0)
        self.dense = np.lib.format.open_memmap(file, "w+", np.float16, (len(self.batches), *first.shape))
        for place in progress.track(range(len(self.batches)), "the dense model reads"):
            logits = first if place == 0 else self.logits(network, place)
            self.dense[place] = logits.float().log_softmax(-1).to(torch.float16).numpy()

    @torch.inference_mode()
    def piece(self, network: Network, number: int) -> tuple[float, int]:
        total, logits = 0.0, self.logits(network, number)
        for start in range(0, len(logits), POSITIONS):
            wanted = torch.from_numpy(self.dense[number, start : start + POSITIONS]).float()
            ours = logits[start : start + POSITIONS].float().log_softmax(-1)
            total -= float(functional.kl_div(ours, wanted, reduction="sum", log_target=True))
        return total, len(logits)


class Likelihood(_OnText):
    """The mean log-likelihood of the next token, in nats: minus the logarithm of the perplexity."""

    words = "minus the logarithm of the perplexity on {tokens:,} tokens of the calibration's text"

    @torch.inference_mode()
    def piece(self, network: Network, number: int) -> tuple[float, int]:
        ids, logits = self.batches[number].ids[0].cpu(), self.logits(network, number)
        loss = functional.cross_entropy(logits[:-1].float(), ids[1:], reduction="sum")
        return -float(loss), len(ids) - 1


class Accuracy(Judge):
    """How often a sequence classifier is right on a table."""

    words = "the share of rows that are classified right, of those that hold {tokens:,} tokens"

    def __init__(self, network: Network, table: str, length: int, tokens: int, compute: str) -> None:
        """
        Args:
            network: The classifier.
            table: The file.
            length: Tokens of a row at most.
            tokens: The most that is judged on.
            compute: The precision of products, as calibration has it.

        Raises:
            UsageError: The model is no classifier.
            CalibrationError: The table can't be read.
        """
        if not is_sequence_classifier(network):
            raise UsageError(
                f"search: {network.architecture} tells no classes apart, which reward 'accuracy' is about."
            )
        rows = read_table(table, None, class_names(network))
        tokenizer, size = text_tokenizer(network, table), window_length(network, length)
        self.compute = compute
        self.batches, self.sizes = [], list[int]()
        for start in range(0, len(rows), ROWS):
            if sum(self.sizes) >= tokens:
                break
            batch = rows.batch(range(start, min(start + ROWS, len(rows))), tokenizer, size)
            self.batches.append(batch)
            self.sizes.append(int(batch["attention_mask"].sum()))
        if (count := sum(self.sizes)) < tokens:
            raise UsageError(
                f"candidates are judged on {tokens:,} tokens, and {table} has {count:,}; give fewer --tokens."
            )

    @torch.inference_mode()
    def piece(self, network: Network, number: int) -> tuple[float, int]:
        inputs = dict(self.batches[number])
        labels = inputs.pop("labels")
        with products(self.compute, network.model.dtype, network.device):
            found = network.model(**inputs).logits.argmax(-1)
        return float((found == labels).sum()), len(labels)


def quality_of(
    settings: Search, network: Network, windows: Windows, compute: str, file: Path, progress: Progress
) -> tuple[Quality, str]:
    """Returns what judges a candidate, as `Judge` does, and by what in words.

    Args:
        settings: Which quality, and on how many tokens at most.
        network: The dense model.
        windows: The calibration's windows.
        compute: The precision of products, as calibration has it.
        file: Where the dense model's distributions may be kept.
        progress: Shows progress.

    Raises:
        UsageError: There are too few tokens, the model doesn't fit the quality, or an import path names no function.
    """
    tokens = settings.tokens[-1]
    judge: Judge
    if settings.table is not None:
        judge = Accuracy(network, settings.table, windows.length, tokens, compute)
    elif ":" in settings.reward:
        function = function_at(settings.reward, "(network, tokens)")
        return lambda candidate, count, text, known: float(
            function(candidate(), count)
        ), f"{settings.reward} on {tokens:,} tokens"
    else:
        if network.family.inputs == "audio" or network.model.get_output_embeddings() is None:
            raise UsageError(
                f"search: reward '{settings.reward}' goes by the tokens that are predicted in a text, and "
                f"{network.architecture} hears, or predicts none; classifiers are judged by --reward accuracy --table "
                "FILE, others by a function of your own."
            )
        if settings.reward == "kl":
            judge = Divergence(network, windows, tokens, compute, file, progress)
        else:
            if network.family.objective != "causal":
                raise UsageError(
                    f"search: reward 'perplexity' is for models that predict the next token; {network.architecture} "
                    "doesn't. Leave --reward out."
                )
            judge = Likelihood(windows, tokens, compute)
    return judge, judge.words.format(tokens=tokens)
