"""Vocabularies with fewer tokens: what old ids become, in configs and in records of what was kept."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import PreTrainedConfig

from secateur.errors import ModelError, UsageError, first_line
from secateur.files import save_tensors

VOCABULARY_FILE = "secateur.vocabulary"  # a safetensors file by another name, so that no tool takes it for weights
FORMAT = "secateur-vocabulary-1"
SPECIAL = re.compile(r"_token_(id|ids|index)$")  # bos_token_id, decoder_start_token_id, image_token_index ...
SUPPRESSED = ("suppress_tokens", "begin_suppress_tokens")


def rank_of(keep: Tensor) -> Tensor:
    """Returns each old id's new one. keep: (vocabulary,) bool; result: (vocabulary,) int64, -1 where it is gone."""
    return torch.where(keep, keep.cumsum(0) - 1, -1)


def special_ids(configs: Iterable[Any], vocabulary: int) -> set[int]:
    """Returns the ids inside of the vocabulary that configs and generation configs (or None) can't do without."""
    there = [config for config in configs if config is not None]
    found = {token for config in there for _, value in _special(config) for token in _flat(value)}
    return {token for token in found if 0 <= token < vocabulary}


def remap_ids(config: Any, keep: Tensor) -> Any:
    """Returns a copy of a config or generation config that speaks of the new vocabulary.

    Every special id gets its rank, whatever it is called (`*_token_id`, `*_token_ids`, `*_token_index`,
    `forced_decoder_ids`), alone or in a list, also in configs inside of a config; `vocab_size` becomes the new one.
    None stays None. Ids outside of the vocabulary (-1, or a default that never fitted the model) name no row before
    or after, and stay as they are.

    Tokens that are only suppressed (`suppress_tokens`, `begin_suppress_tokens`), and sequences that are forbidden
    or favoured (`bad_words_ids`, `sequence_bias`), need not be kept: what can't be written any more leaves the list,
    and a list that gets empty becomes None.

    Args:
        config: A config or generation config of transformers; it stays as it is.
        keep: (vocabulary,) bool.

    Raises:
        UsageError: A special id isn't kept.
    """
    rank: list[int] = rank_of(keep).tolist()
    for name, value in _special(config):
        for token in _flat(value):
            if 0 <= token < len(rank) and rank[token] < 0:
                raise UsageError(
                    f"{name} is token {token}, which isn't kept; keep the closure of the tokens and the configs."
                )
    config = copy.deepcopy(config)
    _remap(config, rank, int(keep.sum()))
    return config


def _remap(config: Any, rank: list[int], kept: int) -> None:
    """Edits a config and those inside of it in place."""
    for name, value in _special(config, nested=False):
        setattr(config, name, _mapped(value, rank))
    for name in SUPPRESSED:
        if tokens := getattr(config, name, None):
            setattr(config, name, [_mapped(token, rank) for token in tokens if _stays([token], rank)] or None)
    if words := getattr(config, "bad_words_ids", None):
        config.bad_words_ids = [_mapped(word, rank) for word in words if _stays(word, rank)] or None
    bias = getattr(config, "sequence_bias", None)
    if isinstance(bias, dict):
        config.sequence_bias = {
            tuple(_mapped(list(word), rank)): by for word, by in bias.items() if _stays(word, rank)
        } or None
    elif bias:
        config.sequence_bias = [[_mapped(word, rank), by] for word, by in bias if _stays(word, rank)] or None
    if hasattr(config, "vocab_size"):
        config.vocab_size = kept
    for _, inner in _inner(config):
        _remap(inner, rank, kept)


def _special(config: Any, nested: bool = True) -> Iterator[tuple[str, Any]]:
    """Yields the fields that hold special ids, with their values."""
    for name, value in sorted(vars(config).items()):
        if value is not None and (SPECIAL.search(name) or name == "forced_decoder_ids"):
            yield name, value
    for _, inner in _inner(config) if nested else ():
        yield from _special(inner)


def _inner(config: Any) -> Iterator[tuple[str, Any]]:
    for name, value in vars(config).items():
        if isinstance(value, PreTrainedConfig):
            yield name, value


def _flat(value: Any) -> Iterator[int]:
    """Yields the ids in an id, a list of them, or a list of pairs (position, id)."""
    if isinstance(value, list | tuple):
        for one in value:
            yield from _flat(one[1] if isinstance(one, list | tuple) and len(one) == 2 else one)
    elif isinstance(value, int) and not isinstance(value, bool):
        yield value


def _mapped(value: Any, rank: list[int]) -> Any:
    """Maps what `_flat` reads; None and ids outside of the vocabulary stay."""
    if isinstance(value, list | tuple):
        return [
            [one[0], _mapped(one[1], rank)] if isinstance(one, list | tuple) else _mapped(one, rank) for one in value
        ]
    return rank[value] if isinstance(value, int) and 0 <= value < len(rank) else value


def _stays(tokens: Iterable[int], rank: list[int]) -> bool:
    return all(not 0 <= token < len(rank) or rank[token] >= 0 for token in tokens)


def kept_of(kept: Tensor | None, keep: Tensor) -> Tensor:
    """Returns a cut network's record: the ids in the vocabulary that the first cut began with.

    Args:
        kept: The record of the network before this cut, None if its vocabulary was whole.
        keep: (vocabulary before this cut,) bool.

    Returns:
        (kept tokens,) int64, rising.
    """
    return torch.nonzero(keep).flatten() if kept is None else kept[keep]


def save_kept(kept: Tensor, folder: Path) -> None:
    """Writes the record `kept`: (kept tokens,) int64 into a checkpoint folder, as VOCABULARY_FILE.

    Raises:
        OSError: The disk is full, or can't be written.
    """
    save_tensors({"kept": kept.to(torch.int64)}, folder / VOCABULARY_FILE, {"format": FORMAT})


def load_kept(folder: Path, vocabulary: int | None = None) -> Tensor | None:
    """Reads a checkpoint folder's record: (kept tokens,) int64; None if it has none.

    Args:
        folder: The checkpoint folder.
        vocabulary: The model's vocabulary, which the record must fit; None doesn't look.

    Raises:
        ModelError: The record is broken, or belongs to another model.
    """
    path = folder / VOCABULARY_FILE
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            kept: Tensor = file.get_tensor("kept")
            form = (file.metadata() or {}).get("format")
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path} can't be read ({first_line(error)}); remove it, and KL can't be measured.") from error
    rising = kept.ndim == 1 and kept.dtype == torch.int64 and bool((kept.diff(prepend=torch.tensor([-1])) > 0).all())
    if form != FORMAT or not rising:
        raise ModelError(
            f"{path} is no list of kept tokens in the format {FORMAT}; remove it, and KL can't be measured."
        )
    if vocabulary is not None and len(kept) != vocabulary:
        raise ModelError(
            f"{path} tells of {len(kept)} tokens, but the model's vocabulary has {vocabulary}; "
            "it belongs to another model."
        )
    return kept
