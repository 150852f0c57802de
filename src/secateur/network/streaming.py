"""Streaming: a model without weights in its blocks, which are read from safetensors files when their turn comes."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
import transformers
from accelerate import init_empty_weights
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from secateur.errors import ModelError, first_line
from secateur.network.family import Family
from secateur.network.shards import INDEX


@dataclass(frozen=True)
class Piece:
    """A tensor in the files that is a part of a weight: of one expert, and of its rows part `part` of `parts`."""

    name: str
    expert: int
    part: int
    parts: int

    def of(self, whole: Tensor) -> Tensor:
        """Returns the part of the weight (experts, out, in), without a copy."""
        return whole[self.expert].chunk(self.parts)[self.part]


class BlockStore:
    """Reads a streamed model's weights, and gives them up again.

    Outside of `fill` and `empty`, a block's parameters are NaN of the right shape that take no memory, so that
    whatever uses them by mistake can't go unnoticed.

    Attributes:
        names: From a parameter's name in the model to its name in the files.
        files: From a name in the files to the file.
        pieces: By the parameter's name: what the files hold in pieces instead.
    """

    def __init__(
        self,
        names: Mapping[str, str],
        files: Mapping[str, Path],
        pieces: Mapping[str, tuple[Piece, ...]] = MappingProxyType({}),
    ) -> None:
        self.names = dict(names)
        self.files = dict(files)
        self.pieces = dict(pieces)

    def known(self, name: str) -> list[str]:
        """Returns the names in the files of what a parameter is made of; none for a tie that is there by another."""
        if name in self.pieces:
            return [piece.name for piece in self.pieces[name]]
        return [self.names[name]] if name in self.names else []

    def as_filed(self, name: str, tensor: Tensor) -> dict[str, Tensor]:
        """Returns a parameter's value as files hold it, by the names there."""
        if name in self.pieces:
            return {piece.name: piece.of(tensor) for piece in self.pieces[name]}
        return {self.names.get(name, name): tensor}

    def fill(self, block: nn.Module, prefix: str) -> None:
        """Reads a block's weights.

        Args:
            block: The block.
            prefix: Its full name.

        Raises:
            ModelError: A file is corrupt or gone, a weight has another shape, or is NaN or infinite.
        """
        self._read({f"{prefix}.{name}": tensor for name, tensor in _tensors(block)})

    def fill_rest(self, model: nn.Module, blocks: str) -> None:
        """Reads all weights outside of the blocks, whose full name is `blocks`."""
        self._read({name: tensor for name, tensor in _tensors(model) if not name.startswith(f"{blocks}.")})

    def empty(self, block: nn.Module) -> None:
        """Gives up a block's weights."""
        for parameter in block.parameters():
            parameter.data = _nothing(parameter)

    def _read(self, wanted: Mapping[str, Tensor]) -> None:
        by_file: dict[Path, list[tuple[str, str, Piece | None]]] = {}  # names in the model and in the file
        for name, tensor in wanted.items():
            if name in self.pieces:
                tensor.data = torch.full(tensor.shape, torch.nan, dtype=tensor.dtype)
                for one in self.pieces[name]:
                    by_file.setdefault(self.files[one.name], []).append((name, one.name, one))
            elif name in self.names:
                known = self.names[name]
                by_file.setdefault(self.files[known], []).append((name, known, None))
        for path, entries in by_file.items():
            try:
                with safe_open(path, framework="pt") as file:
                    for name, known, piece in entries:
                        found = file.get_tensor(known)
                        if piece is None:
                            _take(wanted[name], found, name, path)
                        else:
                            _fill(piece.of(wanted[name].data), found, known, path)
            except (OSError, SafetensorError) as error:
                raise ModelError(f"{path} can't be read: {first_line(error)}; fetch it again.") from error


def _take(target: Tensor, found: Tensor, name: str, path: Path) -> None:
    _check(target, found, name, path)
    target.data = found.to(target.dtype, copy=True)  # a copy, as the file may be replaced while it is in use


def _fill(target: Tensor, found: Tensor, name: str, path: Path) -> None:
    _check(target, found, name, path)
    target.copy_(found)


def _check(target: Tensor, found: Tensor, name: str, path: Path) -> None:
    if found.shape != target.shape:
        raise ModelError(
            f"{path}: {name} has the shape {tuple(found.shape)}, but config.json makes it {tuple(target.shape)}; "
            "they don't belong together."
        )
    if not bool(torch.isfinite(found.to(target.dtype)).all()):
        raise ModelError(f"{name} holds NaN or infinite weights; the checkpoint is broken.")


def streamed_model(
    shards: Iterable[Path], config: Any, kind: Any, family: Family, dtype: torch.dtype | None, trust: bool
) -> tuple[Any, BlockStore]:
    """Builds a model whose blocks have no weights yet; what lies outside of them is read.

    Args:
        shards: The checkpoint's files.
        config: Its config.
        kind: The model's class.
        family: Its description.
        dtype: None keeps the checkpoint's own.
        trust: Whether code from the checkpoint may run.

    Raises:
        ModelError: A weight is missing, or goes by a name that isn't the model's.
    """
    files: dict[str, Path] = {}
    for shard in shards:
        with safe_open(shard, framework="pt") as file:
            files |= dict.fromkeys(file.keys(), shard)
    dtype = dtype or config.dtype or _first_dtype(files)
    with init_empty_weights(include_buffers=False):
        if issubclass(kind, transformers.PreTrainedModel):
            model = kind._from_config(config, dtype=dtype)
        else:
            model = kind.from_config(config, dtype=dtype, trust_remote_code=trust)
    model.tie_weights()
    model.requires_grad_(False)
    _give_shapes(model)
    base = model.base_model
    prefix = "" if base is model else f"{model.base_model_prefix}."
    pieces = _pieces(model, files, prefix, family)
    store = BlockStore(_names(model, files, prefix, family, pieces), files, pieces)
    store.fill_rest(model, prefix + family.blocks)
    return model, store


def _first_dtype(files: Mapping[str, Path]) -> torch.dtype:
    name, path = next(iter(files.items()))
    with safe_open(path, framework="pt") as file:
        found: torch.dtype = file.get_tensor(name).dtype
    return found


def _give_shapes(model: nn.Module) -> None:
    """Puts NaN of the right shape, of no memory, in the place of weights that aren't anywhere; ties stay ties."""
    made: dict[int, nn.Parameter] = {}
    for module in list(model.modules()):
        for name, parameter in list(module.named_parameters(recurse=False)):
            if parameter.is_meta:
                if id(parameter) not in made:
                    made[id(parameter)] = nn.Parameter(_nothing(parameter), requires_grad=False)
                module.register_parameter(name, made[id(parameter)])


def _nothing(like: Tensor) -> Tensor:
    return torch.full((), torch.nan, dtype=like.dtype).expand(like.shape)


def _tensors(module: nn.Module) -> list[tuple[str, Tensor]]:
    """A module's parameters by all of their names, and the buffers that files may hold."""
    return [*module.named_parameters(remove_duplicate=False), *module.named_buffers()]


def _in_block(name: str, prefix: str, family: Family) -> tuple[str, str]:
    """Splits a parameter's name behind its block's: ("model.layers.0.", "mlp.gate.weight"); ("", ...) outside."""
    blocks = f"{prefix}{family.blocks}."
    if not name.startswith(blocks):
        return "", name
    index, _, path = name.removeprefix(blocks).partition(".")
    return f"{blocks}{index}.", path


def _pieces(model: Any, files: Mapping[str, Path], prefix: str, family: Family) -> dict[str, tuple[Piece, ...]]:
    """Returns what files have in one piece per expert (`Family.files`), where it is there."""
    found = {}
    for name, tensor in model.named_parameters():
        block, path = _in_block(name, prefix, family)
        rows = [one for one in family.files.get(path, ()) if "{}" in one]
        for place in _spellings(block, prefix) if rows else ():
            pieces = tuple(
                Piece(place + one.format(expert), expert, part, len(rows))
                for expert in range(len(tensor))
                for part, one in enumerate(rows)
            )
            if all(piece.name in files for piece in pieces):
                found[name] = pieces
                break
    return found


def _spellings(name: str, prefix: str) -> tuple[str, str, str]:
    """A name as it is, without the base model's prefix, and with it."""
    return name, name.removeprefix(prefix), prefix + name


def _names(
    model: Any, files: Mapping[str, Path], prefix: str, family: Family, pieces: Mapping[str, Any]
) -> dict[str, str]:
    """Returns each weight's name in the files, less those in pieces; a tied weight is there by one of its names."""
    names: dict[str, str] = {}
    found: set[int] = set()
    for name, tensor in _tensors(model):
        block, path = _in_block(name, prefix, family)
        others = [block + one for one in family.files.get(path, ())]
        tried = (one for other in (name, *others) for one in _spellings(other, prefix))
        spellings = (*tried, name.replace("lm_head", "embed_out"))
        known = next((spelling for spelling in spellings if spelling in files), None)
        if name in pieces:
            found.add(id(tensor))
        elif known is not None:
            names[name] = known
            found.add(id(tensor))
    missing = [name for name, tensor in model.named_parameters(remove_duplicate=False) if id(tensor) not in found]
    if missing:
        raise ModelError(
            f"the checkpoint has no weight by the name of {missing[0]} ({len(missing)} are missing), so it can't be "
            "streamed; without --stream it may load."
        )
    return names


def assemble(parts: Sequence[Path], folder: Path) -> None:
    """Makes safetensors files the shards of a checkpoint, with their index.

    Args:
        parts: Files in the order of the shards; they stay where they are, and share their bytes where the disk can.
        folder: The checkpoint's.
    """
    index: dict[str, str] = {}
    total = 0
    for number, part in enumerate(parts, 1):
        name = f"model-{number:05}-of-{len(parts):05}.safetensors"
        with safe_open(part, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118 (not a dict)
                index[key] = name
        with part.open("rb") as raw:
            header = int.from_bytes(raw.read(8), "little")
        total += part.stat().st_size - 8 - header
        try:
            os.link(part, folder / name)
        except OSError:  # a file system without links
            shutil.copyfile(part, folder / name)
    text = json.dumps({"metadata": {"total_size": total}, "weight_map": index}, indent=1)
    (folder / INDEX).write_text(text + "\n", encoding="utf-8")
