"""Streaming: a model without weights in its blocks, which are read from safetensors files when their turn comes."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate import init_empty_weights
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from secateur.errors import ModelError, first_line
from secateur.network.family import Family


class BlockStore:
    """Reads a streamed model's weights, and gives them up again.

    Outside of `fill` and `empty`, a block's parameters are NaN of the right shape that take no memory, so that
    whatever uses them by mistake can't go unnoticed.

    Attributes:
        names: From a parameter's name in the model to its name in the files.
        files: From a name in the files to the file.
    """

    def __init__(self, names: Mapping[str, str], files: Mapping[str, Path]) -> None:
        self.names = dict(names)
        self.files = dict(files)

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
        by_file: dict[Path, list[str]] = {}
        for name in wanted:
            if name in self.names:
                by_file.setdefault(self.files[self.names[name]], []).append(name)
        for path, names in by_file.items():
            try:
                with safe_open(path, framework="pt") as file:
                    for name in names:
                        _take(wanted[name], file.get_tensor(self.names[name]), name, path)
            except (OSError, SafetensorError) as error:
                raise ModelError(f"{path} can't be read: {first_line(error)}; fetch it again.") from error


def _take(target: Tensor, found: Tensor, name: str, path: Path) -> None:
    if found.shape != target.shape:
        raise ModelError(
            f"{path}: {name} has the shape {tuple(found.shape)}, but config.json makes it {tuple(target.shape)}; "
            "they don't belong together."
        )
    target.data = found.to(target.dtype, copy=True)  # a copy, as the file may be replaced while it is in use
    if not bool(torch.isfinite(target).all()):
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
    store = BlockStore(_names(model, files, prefix), files)
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


def _names(model: Any, files: Mapping[str, Path], prefix: str) -> dict[str, str]:
    """Returns each weight's name in the files; a tied weight is there by one of its names."""
    names: dict[str, str] = {}
    found: set[int] = set()
    for name, tensor in _tensors(model):
        bare = name.removeprefix(prefix)
        spellings = (name, bare, prefix + name, name.replace("lm_head", "embed_out"))
        known = next((spelling for spelling in spellings if spelling in files), None)
        if known is not None:
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
    (folder / "model.safetensors.index.json").write_text(text + "\n", encoding="utf-8")
