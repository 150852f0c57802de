"""How good a candidate is, once the model is put together from the level database."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

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

POSITIONS = 256  # whose distributions are held at once
ROWS = 16  # of a table at a time


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


class _OnText:
    """Reads the calibration's windows, as many as hold the tokens that are asked for."""

    def __init__(self, network: Network, windows: Windows, tokens: int, compute: str) -> None:
        self.network, self.length, self.compute = network, windows.length, compute
        self.batches = windows.part(0, windows_of(windows, tokens)).batches(1)

    @torch.inference_mode()
    def logits(self, number: int) -> Tensor:
        """(positions, vocabulary) float32."""
        first, others = model_inputs(self.network, self.batches[number])
        with products(self.compute, self.network.model.dtype, self.network.device):
            output: Tensor = self.network.model(first.to(self.network.device), **others)[0]
        return output[0].float().cpu()

    def windows(self, tokens: int) -> range:
        """The windows that hold so many tokens."""
        return range(-(-tokens // self.length))


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
        super().__init__(network, windows, tokens, compute)
        first = self.logits(0)
        shape = (len(self.windows(tokens)), *first.shape)
        self.dense = np.lib.format.open_memmap(file, "w+", np.float16, shape)
        for place in progress.track(self.windows(tokens), "the dense model reads"):
            logits = first if place == 0 else self.logits(place)
            self.dense[place] = logits.log_softmax(-1).to(torch.float16).numpy()

    @torch.inference_mode()
    def __call__(self, tokens: int) -> float:
        """Returns minus the divergence of the model as it is, on the first tokens."""
        total, count = 0.0, 0
        for number in self.windows(tokens):
            logits = self.logits(number)
            for start in range(0, len(logits), POSITIONS):
                wanted = torch.from_numpy(self.dense[number, start : start + POSITIONS]).float()
                ours = logits[start : start + POSITIONS].log_softmax(-1)
                total += float((wanted.exp() * (wanted - ours)).sum())
            count += len(logits)
        return -total / count


class Likelihood(_OnText):
    """The mean log-likelihood of the next token, in nats: minus the logarithm of the perplexity."""

    words = "minus the logarithm of the perplexity on {tokens:,} tokens of the calibration's text"

    @torch.inference_mode()
    def __call__(self, tokens: int) -> float:
        """Returns it for the model as it is, on the first tokens."""
        total, count = 0.0, 0
        for number in self.windows(tokens):
            ids = self.batches[number].ids[0]
            total -= float(functional.cross_entropy(self.logits(number)[:-1], ids[1:].cpu(), reduction="sum"))
            count += len(ids) - 1
        return total / count


class Accuracy:
    """How often a sequence classifier is right on a table."""

    words = "the share of rows that are classified right, of those of the table's first {tokens:,} tokens"

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
        self.network, self.compute = network, compute
        self.batches = []
        count = 0
        for start in range(0, len(rows), ROWS):
            if count >= tokens:
                break
            batch = rows.batch(range(start, min(start + ROWS, len(rows))), tokenizer, size)
            count += int(batch["attention_mask"].sum())
            self.batches.append((count, batch))
        if count < tokens:
            raise UsageError(
                f"candidates are judged on {tokens:,} tokens, and {table} has {count:,}; give fewer --tokens."
            )

    @torch.inference_mode()
    def __call__(self, tokens: int) -> float:
        """Returns it for the model as it is."""
        right, count = 0, 0
        for until, batch in self.batches:
            labels = batch["labels"]
            inputs = {name: value for name, value in batch.items() if name != "labels"}
            with products(self.compute, self.network.model.dtype, self.network.device):
                right += int((self.network.model(**inputs).logits.argmax(-1) == labels).sum())
            count += len(labels)
            if until >= tokens:
                break
        return right / count


def quality_of(
    settings: Search, network: Network, windows: Windows, compute: str, file: Path, progress: Progress
) -> tuple[Callable[[int], float], str]:
    """Returns what judges the model as it is on a number of tokens, and what that is in words.

    Args:
        settings: Which quality, and on how many tokens at most.
        network: The dense model, in which candidates are put together later.
        windows: The calibration's windows.
        compute: The precision of products, as calibration has it.
        file: Where the dense model's distributions may be kept.
        progress: Shows progress.

    Raises:
        UsageError: There are too few tokens, the model doesn't fit the quality, or an import path names no function.
    """
    tokens = settings.tokens[-1]
    judge: Divergence | Likelihood | Accuracy
    if settings.table is not None:
        judge = Accuracy(network, settings.table, windows.length, tokens, compute)
    elif ":" in settings.reward:
        function = function_at(settings.reward, "(network, tokens)")
        return lambda count: float(function(network, count)), f"{settings.reward} on {tokens:,} tokens"
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
            judge = Likelihood(network, windows, tokens, compute)
    return judge, judge.words.format(tokens=tokens)
