"""Tokenizers with fewer tokens: which ones must stay beside the kept ones, and the tokenizer of those alone.

All of it works on the JSON of the `tokenizers` library. A tokenizer that is cut to a closed set of tokens

* gives a text whose tokens were all kept the same tokens as before, by their new ids, and
* reads any other text in the kept tokens, without losing more of it than it did before (a WordLevel tokenizer
  excepted, which has nothing smaller than words).
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor

from secateur.errors import UsageError
from secateur.network.quiet import quiet_transformers
from secateur.network.vocabulary import rank_of, special_ids

WORD_START = "▁"  # stands for a space; as bytes it wouldn't be decoded to one
BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))
STALE = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "tokenizer.model",
    "sentencepiece.bpe.model",
    "spiece.model",
    "tekken.json",
)


def closure(tokenizer: Any, keep: Tensor, configs: Iterable[Any] = ()) -> Tensor:
    """Returns the tokens that must stay so that the kept ones can still be produced and no text is lost.

    These are, beside the kept ones: special and added tokens, those of the post-processor and of `configs`; and

    * BPE: what the merges on the way to each kept token make, and the single characters (of a byte-level tokenizer:
      bytes). A tokenizer that falls back to bytes needs those 256 instead of the characters.
    * Unigram: the single characters, or the bytes that it falls back to; the unknown token; the piece of the lowest
      score, which an unknown character's score hangs on; pieces with a character that has no piece of its own.
    * WordPiece: the single characters, alone and as a continuation; the unknown token; pieces with a character that
      has no such piece.
    * WordLevel: the unknown token.

    Rows of the embedding beyond the tokenizer may go, unless a config names them.

    Args:
        tokenizer: A fast tokenizer of transformers.
        keep: (vocabulary,) bool, the rows of the embedding to keep.
        configs: The model's config and generation_config; None stands for one that it lacks.

    Returns:
        (vocabulary,) bool, True wherever `keep` is.

    Raises:
        UsageError: The tokenizer is missing, slow, of an unknown kind, or has tokens beyond the vocabulary.
    """
    description = _described(tokenizer)
    ids = _model_ids(description["model"])
    must = keep.clone()
    named = {token["id"] for token in description["added_tokens"]}
    named |= {token for token in tokenizer.all_special_ids if token is not None}
    named |= set(_ids_beside(description)) | special_ids(configs, len(keep))
    last = max(named | set(ids.values()), default=-1)
    if last >= len(keep):
        raise UsageError(
            f"the tokenizer has token {last}, but the model's vocabulary has {len(keep)} rows; "
            "they don't belong together."
        )
    must[sorted(named)] = True
    wanted = {token for token, index in ids.items() if must[index]}
    more = KINDS[description["model"]["type"]](description, wanted)
    must[sorted(ids[token] for token in more if token in ids)] = True
    return must


def remap_tokenizer(tokenizer: Any, keep: Tensor) -> Any:
    """Returns a tokenizer of the kept tokens, whose ids are their ranks among them.

    It is written and read back, so that what comes back is what others load; class, special tokens, chat template
    and settings stay.

    Args:
        tokenizer: A fast tokenizer of transformers; it stays as it is.
        keep: (vocabulary,) bool, closed (`closure`).

    Raises:
        UsageError: The tokenizer is missing, slow, of an unknown kind, or comes back changed from a file; or `keep`
            isn't closed.
    """
    if missing := torch.nonzero(closure(tokenizer, keep) & ~keep).flatten().tolist():
        raise UsageError(
            f"{len(missing)} tokens that others are made of would go, {tokenizer.convert_ids_to_tokens(missing[0])!r} "
            "among them; keep the closure of the tokens."
        )
    description = _described(tokenizer)
    rank: list[int] = rank_of(keep).tolist()
    expected = {token: rank[index] for token, index in tokenizer.get_vocab().items() if rank[index] >= 0}
    _remap(description, rank)
    if Tokenizer.from_str(json.dumps(description)).get_vocab() != expected:
        raise UsageError(
            "the tokenizer's added tokens don't follow its other tokens without a gap once some are gone; its "
            "vocabulary can't be pruned. Save the tokenizer anew with its added tokens last."
        )
    with tempfile.TemporaryDirectory(prefix="secateur-tokenizer-") as scratch, quiet_transformers():
        tokenizer.save_pretrained(scratch)
        (Path(scratch) / "tokenizer.json").write_text(json.dumps(description, ensure_ascii=False), encoding="utf-8")
        _remap_settings(Path(scratch) / "tokenizer_config.json", rank)
        found = type(tokenizer).from_pretrained(scratch)
    found.name_or_path = found.init_kwargs["name_or_path"] = tokenizer.name_or_path
    read = json.loads(found.backend_tokenizer.to_str())
    if found.get_vocab() != expected or _core(read["model"]) != _core(description["model"]):
        raise UsageError(
            f"{type(tokenizer).__name__} builds another vocabulary than its file says, so it can't be pruned; load "
            "the tokenizer as a PreTrainedTokenizerFast and save the checkpoint with it."
        )
    return found


def save_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Writes a tokenizer into a checkpoint folder, and removes the files of the one that was there."""
    for name in STALE:
        (folder / name).unlink(missing_ok=True)
    with quiet_transformers():
        tokenizer.save_pretrained(folder)


def _described(tokenizer: Any) -> dict[str, Any]:
    """Returns the JSON of a tokenizer that can be cut."""
    if tokenizer is None:
        raise UsageError(
            "the model has no tokenizer, so nobody knows what its tokens mean and its vocabulary can't be pruned; "
            "put the tokenizer's files into the checkpoint's folder."
        )
    if not getattr(tokenizer, "is_fast", False):
        raise UsageError(
            f"{type(tokenizer).__name__} is a slow tokenizer, whose vocabulary can't be pruned; save the checkpoint "
            "with a fast one (a tokenizer.json)."
        )
    description: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())
    kind = description["model"].get("type")
    if kind not in KINDS:
        raise UsageError(f"a tokenizer of kind {kind} can't be pruned. Known: {', '.join(KINDS)}.")
    for processor in _processors(description["post_processor"]):
        if processor["type"] not in ("TemplateProcessing", "BertProcessing", "RobertaProcessing", "ByteLevel"):
            raise UsageError(
                f"a tokenizer with the post-processor {processor['type']} can't be pruned: it may hold ids."
            )
    return description


def _processors(processor: dict[str, Any] | None) -> Iterator[dict[str, Any]]:
    if processor is None:
        return
    if processor["type"] == "Sequence":
        for part in processor["processors"]:
            yield from _processors(part)
    else:
        yield processor


def _model_ids(model: dict[str, Any]) -> dict[str, int]:
    """Returns the id of each of the model's own tokens."""
    if model["type"] == "Unigram":
        return {piece: index for index, (piece, _) in enumerate(model["vocab"])}
    return dict(model["vocab"])


def _ids_beside(description: dict[str, Any]) -> Iterator[int]:
    """Yields the ids that stand outside of the model and the added tokens."""
    if description["padding"]:
        yield description["padding"]["pad_id"]
    for processor in _processors(description["post_processor"]):
        for token in processor.get("special_tokens", {}).values():
            yield from token["ids"]
        for name in ("sep", "cls"):
            if name in processor:
                yield processor[name][1]


def _remap(description: dict[str, Any], rank: list[int]) -> None:
    """Edits a tokenizer's JSON in place: tokens of rank -1 go, the others get their rank as id."""
    model = description["model"]
    if model["type"] == "Unigram":
        model["vocab"] = [row for index, row in enumerate(model["vocab"]) if rank[index] >= 0]
        if model["unk_id"] is not None:
            model["unk_id"] = rank[model["unk_id"]]
    else:
        model["vocab"] = {token: rank[index] for token, index in model["vocab"].items() if rank[index] >= 0}
    if model["type"] == "BPE":
        vocabulary = model["vocab"]
        model["merges"] = [
            merge
            for merge, (left, right, made) in zip(model["merges"], _merges(model), strict=True)
            if left in vocabulary and right in vocabulary and made in vocabulary
        ]
    for token in description["added_tokens"]:
        token["id"] = rank[token["id"]]
    if description["padding"]:
        description["padding"]["pad_id"] = rank[description["padding"]["pad_id"]]
    for processor in _processors(description["post_processor"]):
        for token in processor.get("special_tokens", {}).values():
            token["ids"] = [rank[index] for index in token["ids"]]
        for name in ("sep", "cls"):
            if name in processor:
                processor[name][1] = rank[processor[name][1]]


def _remap_settings(file: Path, rank: list[int]) -> None:
    """XLNet's class takes the unknown token's id from its settings rather than from the tokenizer's file."""
    settings = json.loads(file.read_text(encoding="utf-8"))
    if isinstance(settings.get("unk_id"), int):
        settings["unk_id"] = rank[settings["unk_id"]]
        file.write_text(json.dumps(settings, ensure_ascii=False, indent=2), encoding="utf-8")


def _core(model: dict[str, Any]) -> tuple[object, ...]:
    """Returns what must be the same in two models for them to give the same ids."""
    merges = list(_merges(model)) if model["type"] == "BPE" else None
    return model["type"], _model_ids(model), merges, model.get("unk_id")


def _merges(model: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Yields each merge of a BPE, in order: both parts, and what they make."""
    prefix = len(model.get("continuing_subword_prefix") or "")
    for merge in model["merges"]:
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        yield left, right, left + right[prefix:]


def _bpe(description: dict[str, Any], wanted: set[str]) -> set[str]:
    model = description["model"]
    makers: dict[str, list[tuple[str, str]]] = {}
    rank: dict[tuple[str, str], tuple[int, str]] = {}
    for number, (left, right, made) in enumerate(_merges(model)):
        makers.setdefault(made, []).append((left, right))
        rank[left, right] = (number, made)
    more = _smallest(description, model["vocab"], _without_affixes(model))
    more.add(model.get("unk_token") or "")
    waiting = sorted(wanted | more)
    seen = set(waiting)
    while waiting:
        token = waiting.pop()
        ways = makers.get(token, [])
        parts = ways[0] if len(ways) == 1 else _made_on_the_way(token, makers, rank)
        for part in parts:
            if part not in seen:
                seen.add(part)
                waiting.append(part)
    return seen


def _made_on_the_way(
    token: str, makers: Mapping[str, list[tuple[str, str]]], rank: Mapping[tuple[str, str], tuple[int, str]]
) -> set[str]:
    """Merges a token from its characters, as BPE does; returns all that it is made of.

    Converted tokenizers have several merges that make the same token, and which of them is used hangs on the others.
    """
    symbols = [token]
    while any(symbol in makers for symbol in symbols):
        symbols = [part for symbol in symbols for part in (makers[symbol][0] if symbol in makers else (symbol,))]
    made = set(symbols)
    while True:
        pairs = [(rank[pair], at) for at, pair in enumerate(pairwise(symbols)) if pair in rank]
        if not pairs:
            return made
        (_, joined), at = min(pairs)
        symbols[at : at + 2] = [joined]
        made.add(joined)


def _without_affixes(model: dict[str, Any]) -> Callable[[str], str]:
    """Returns a function that takes off what marks a BPE's symbols inside or at the end of a word."""
    prefix = model.get("continuing_subword_prefix") or ""
    suffix = model.get("end_of_word_suffix") or ""
    return lambda token: token.removeprefix(prefix).removesuffix(suffix)


def _smallest(
    description: dict[str, Any], tokens: Iterable[str], plain: Callable[[str], str] = lambda token: token
) -> set[str]:
    """Returns the tokens that any text can be spelled with: single characters, or bytes where it falls back to them."""
    if _falls_back(description):
        return {*BYTES, WORD_START}
    partly = BYTES if description["model"].get("byte_fallback") else ()
    return {token for token in tokens if len(plain(token)) == 1} | set(partly)


def _falls_back(description: dict[str, Any]) -> bool:
    """Whether a character without a token comes out as its bytes, and comes back from them."""
    model = description["model"]
    decoder = json.dumps(description["decoder"])
    return bool(model.get("byte_fallback")) and '"ByteFallback"' in decoder and _model_ids(model).keys() >= set(BYTES)


def _unigram(description: dict[str, Any], wanted: set[str]) -> set[str]:
    model = description["model"]
    pieces = [piece for piece, _ in model["vocab"]]
    more = _smallest(description, pieces)
    more.add(min(model["vocab"], key=lambda row: row[1])[0])
    if model["unk_id"] is not None:
        more.add(pieces[model["unk_id"]])
    if not _falls_back(description):
        more |= {piece for piece in pieces if any(character not in more for character in piece)}
    return more


def _wordpiece(description: dict[str, Any], wanted: set[str]) -> set[str]:
    model = description["model"]
    prefix = model["continuing_subword_prefix"]
    tokens = model["vocab"]
    single = {token for token in tokens if len(token) == 1 or len(token.removeprefix(prefix)) == 1}
    whole = {token for token in tokens if any(part not in single for part in _spelled(token, prefix))}
    return single | whole | {model["unk_token"]}


def _spelled(token: str, prefix: str) -> Iterator[str]:
    """Yields the single-character pieces that a WordPiece token can be spelled with."""
    inside = token.startswith(prefix) and token != prefix
    for at, character in enumerate(token.removeprefix(prefix) if inside else token):
        yield prefix + character if inside or at else character


def _wordlevel(description: dict[str, Any], wanted: set[str]) -> set[str]:
    return {description["model"]["unk_token"]}


KINDS: dict[str, Callable[[dict[str, Any], set[str]], set[str]]] = {
    "BPE": _bpe,
    "Unigram": _unigram,
    "WordPiece": _wordpiece,
    "WordLevel": _wordlevel,
}
