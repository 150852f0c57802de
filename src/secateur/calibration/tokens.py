"""How often each token occurs: in all of a calibration text, or in windows; and windows in another vocabulary."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import chain, islice

import torch
from torch import Tensor

from secateur.calibration.data import BETWEEN, Windows, documents, text_tokenizer
from secateur.errors import CalibrationError, UsageError
from secateur.network.network import Network
from secateur.network.vocabulary import rank_of
from secateur.progress import Progress

PIECE = 1 << 20  # characters of a document that are tokenized at once
DOCUMENTS = 64  # documents, or pieces of them, that are tokenized at once
BATCH = 1 << 16  # token ids that are counted at once


def token_counts(network: Network, data: str, progress: Progress) -> Tensor:
    """Counts each token in all documents of a calibration source, not only in the windows that are cut from it.

    Special tokens that a tokenizer adds by itself aren't counted. Of a hub data set the whole split is read.

    Args:
        network: The model, whose tokenizer is used.
        data: A file (.jsonl with `text` or `input_ids`; anything else is plain text) or a hub data set. The model
            writes no documents: with `self`, count the windows (`window_counts`).
        progress: Shows progress.

    Returns:
        (vocabulary,) int64.

    Raises:
        UsageError: `data` is `self`.
        CalibrationError: The data is missing or empty, there is no tokenizer to read it with, or it holds token ids
            beyond the vocabulary.
    """
    if data == "self":
        raise UsageError("'self' has no documents whose tokens can be counted; count the windows that the model wrote.")
    vocabulary = network.dimension("vocabulary")
    if vocabulary is None:
        raise CalibrationError(
            f"{network.source.name}: the config says no vocabulary size, so tokens can't be counted."
        )
    found = documents(data)
    counts = torch.zeros(vocabulary, dtype=torch.int64)
    runs = _batches(found.ids) if found.ids is not None else _tokenized(network, found.texts, data)
    for ids in progress.track(runs, "counting tokens"):
        counts += _counted(ids, vocabulary, data)
    if not bool(counts.any()):
        raise CalibrationError(f"{data} is empty.")
    return counts


def window_counts(ids: Tensor, vocabulary: int) -> Tensor:
    """Counts each token in windows. ids: (windows, length) int64; result: (vocabulary,) int64.

    Raises:
        CalibrationError: An id is beyond the vocabulary.
    """
    return _counted(ids.flatten(), vocabulary, "the windows")


def remap_windows(windows: Windows, keep: Tensor) -> Windows:
    """Returns the same windows in the ids of a vocabulary that lacks some tokens.

    It is for windows whose text isn't known, such as ids from a file. Text is better tokenized anew: where a token is
    gone, others take its place.

    Args:
        windows: In the old vocabulary.
        keep: (old vocabulary,) bool.

    Raises:
        CalibrationError: A window has a token that is gone.
    """
    rank = rank_of(keep)
    ids = rank[windows.ids]
    if gone := torch.nonzero(ids < 0).tolist():
        window, position = gone[0]
        raise CalibrationError(
            f"window {window} of {windows.source} has token {int(windows.ids[window, position])}, which isn't kept; "
            "tokenize its text with the new tokenizer, or keep that token."
        )
    return replace(windows, ids=ids)


def _counted(ids: Tensor, vocabulary: int, data: str) -> Tensor:
    counts = torch.bincount(ids, minlength=vocabulary)
    if len(counts) > vocabulary:
        raise CalibrationError(f"{data} holds token id {len(counts) - 1}; the model's vocabulary has {vocabulary}.")
    return counts


def _batches(ids: Iterator[int]) -> Iterator[Tensor]:
    while some := list(islice(ids, BATCH)):
        yield torch.tensor(some)


def _tokenized(network: Network, texts: Iterator[str], data: str) -> Iterator[Tensor]:
    """Yields token ids of a batch of documents, or of pieces of long ones; documents are joined as in windows."""
    tokenizer = text_tokenizer(network, data)
    joined = (text if number == 0 else BETWEEN + text for number, text in enumerate(texts))
    pieces = (piece for text in joined for piece in _pieces(text))
    while some := list(islice(pieces, DOCUMENTS)):
        rows = tokenizer(some, add_special_tokens=False, verbose=False).input_ids
        yield torch.tensor(list(chain.from_iterable(rows)), dtype=torch.int64)


def _pieces(text: str) -> Iterator[str]:
    """Cuts a text before a space, where tokenizers that know words cut anyway."""
    start = 0
    while len(text) - start > PIECE:
        end = text.rfind(" ", start + 1, start + PIECE)
        end = end if end > 0 else start + PIECE
        yield text[start:end]
        start = end
    yield text[start:]
