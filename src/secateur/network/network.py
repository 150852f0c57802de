"""A model together with what we know of its structure: its blocks and its linear layers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from secateur.errors import ModelError
from secateur.network.family import Family, Layout, Projection
from secateur.network.streaming import BlockStore


@dataclass(frozen=True)
class Source:
    """Where a model came from.

    Attributes:
        name: What the user wrote: a hub id, a path, `demo:NAME`.
        path: The checkpoint folder or the .gguf file that was read.
        dtype: The dtype that the weights are held in.
        trust_remote_code: Whether code from the checkpoint may run.
    """

    name: str
    path: Path
    dtype: str
    trust_remote_code: bool = False


@dataclass(frozen=True)
class Layer:
    """One linear weight, whatever the order and number of its stored axes.

    Attributes:
        name: Its full name in the model.
        parameter: The stored weight; `matrix` shows it as (out, in).
        layout: The order of the stored axes.
        reads: The name of its input; layers of one block with the same name read the same tensor.
        module: The module that applies the weight; None for a bare parameter (XLNet).
        table: It is an embedding, whose rows are looked up: it has no statistics of an input.
        block: Index of the block that it belongs to; None outside of the blocks.
    """

    name: str
    parameter: nn.Parameter
    layout: Layout
    reads: str
    module: nn.Module | None
    table: bool = False
    block: int | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """(outputs, inputs)"""
        return tuple(self.matrix().shape)  # type: ignore[return-value]

    def matrix(self) -> Tensor:
        """Returns the weight as (out, in), without a copy, in the stored dtype."""
        return self.as_matrix(self.parameter.detach())

    def as_matrix(self, stored: Tensor) -> Tensor:
        """Shows a tensor of the stored weight's shape (a gradient, a mask) as (out, in), without a copy."""
        flat = stored.flatten(1)
        return flat if self.layout is Layout.OUT_IN else flat.T

    def write(self, W: Tensor, keep: Tensor) -> None:
        """Stores W: (out, in), float32, with exact zeros where `keep` is False and nowhere else.

        A kept weight that is zero in the solution, or too small for the stored dtype, becomes the dtype's
        smallest normal number, so that the mask can be read from the file.
        """
        dtype = self.parameter.dtype
        stored = torch.where(keep, W, 0.0).to(dtype)
        if not bool(torch.isfinite(stored).all()):
            raise ModelError(f"{self.name}: the pruned weights don't fit {dtype}; use --dtype float32.")
        stored[keep & (stored == 0)] = torch.finfo(dtype).smallest_normal
        self.matrix().copy_(stored)

    def zeros(self) -> int:
        """Returns how many weights are exactly zero."""
        return self.parameter.numel() - int(torch.count_nonzero(self.parameter.detach()))


class Network:
    """A loaded model, its family and its tokenizer.

    Attributes:
        model: The transformers model, in eval mode.
        family: The description of its architecture.
        tokenizer: Its tokenizer, or None.
        source: Where it came from.
        device: Where blocks are computed; the model itself stays in main memory.
        notes: What the user should know about the loading.
        store: Where the blocks' weights are read from when their turn comes; None if they are all in memory.
        kept: Of a network whose vocabulary was cut: (vocabulary,) int64, each token's id before any cut; else None.
    """

    def __init__(
        self,
        model: Any,
        family: Family,
        tokenizer: Any,
        source: Source,
        device: torch.device,
        notes: tuple[str, ...] = (),
        store: BlockStore | None = None,
        kept: Tensor | None = None,
    ) -> None:
        self.model = model
        self.family = family
        self.tokenizer = tokenizer
        self.source = source
        self.device = device
        self.notes = notes
        self.store = store
        self.kept = kept
        self._resident: set[int] = set()
        self.base = model.base_model
        self._prefix = "" if self.base is model else f"{model.base_model_prefix}."
        self.blocks: nn.ModuleList = self.base.get_submodule(family.blocks)

    @contextmanager
    def resident(self, block: int | None) -> Iterator[None]:
        """Has a block's weights in memory for as long as it lasts; None stands for what lies outside of the blocks."""
        if self.store is None or block is None or block in self._resident:
            yield
            return
        self.store.fill(self.blocks[block], self.block_name(block))
        self._resident.add(block)
        try:
            yield
        finally:
            self._resident.remove(block)
            self.store.empty(self.blocks[block])

    def visit(self, layers: Iterable[Layer]) -> Iterator[Layer]:
        """Yields layers, each while its weights are in memory; best in forward order."""
        for block, some in groupby(layers, key=lambda layer: layer.block):
            with self.resident(block):
                yield from some

    def file_name(self, name: str) -> str | None:
        """Returns a weight's name in the files of a streamed network; None for a tie that is there by another name."""
        return name if self.store is None else self.store.names.get(name)

    def block_name(self, block: int) -> str:
        """Returns the full name of the block with this index."""
        return f"{self._prefix}{self.family.blocks}.{block}"

    def block_layers(self, block: int) -> list[Layer]:
        """Returns a block's linear layers in the order in which it computes them."""
        return [self._layer(block, projection) for projection in self.family.projections]

    def layers(self) -> list[Layer]:
        """Returns the linear layers of all blocks in forward order."""
        return [layer for block in range(len(self.blocks)) for layer in self.block_layers(block)]

    def _layer(self, block: int, projection: Projection) -> Layer:
        name = f"{self.block_name(block)}.{projection.path}"
        found = _resolve(self.blocks[block], projection.path, name)
        module = found if isinstance(found, nn.Module) else None
        parameter = found.weight if isinstance(found, nn.Module) else found
        if not isinstance(parameter, nn.Parameter):
            raise ModelError(f"{name} has no weight; is this a standard {self.family.name} model?")
        reads = f"{self.block_name(block)}/{projection.columns}"
        return Layer(name, parameter, projection.layout, reads, module, block=block)

    def outside(self) -> list[Layer]:
        """Returns the weights outside of the blocks that can be pruned when named: tables and linear layers."""
        inside = {id(module) for module in self.blocks.modules()}
        found = []
        for name, module in self.model.named_modules():
            if id(module) in inside:
                continue
            if isinstance(module, nn.Linear):
                found.append(Layer(name, _parameter(module), Layout.OUT_IN, name, module))
            elif isinstance(module, nn.Embedding):
                found.append(Layer(name, _parameter(module), Layout.OUT_IN, name, module, table=True))
        return found

    def ties(self, layer: Layer) -> list[str]:
        """Returns the names of other modules that hold the very same weight."""
        return [
            name
            for name, module in self.model.named_modules()
            if name != layer.name and getattr(module, "weight", None) is layer.parameter
        ]

    def dimension(self, name: str) -> int | None:
        """Returns a dimension from the config (`hidden`, `heads`, `positions` ...), None if it has none."""
        field = self.family.config.get(name)
        value = getattr(self.model.config, field, None) if field else None
        return value if isinstance(value, int) and value > 0 else None

    @property
    def architecture(self) -> str:
        """The model's class name, e.g. `LlamaForCausalLM`."""
        return type(self.model).__name__

    @property
    def generates(self) -> bool:
        """Whether the model has a next-token head, so that perplexity and `generate` make sense."""
        return self.family.objective == "causal" and self.model.get_output_embeddings() is not None

    def parameters(self) -> int:
        """Returns the number of parameters, ties counted once."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    def about(self) -> dict[str, Any]:
        """Returns the facts that reports show."""
        return {
            "source": self.source.name,
            "architecture": self.architecture,
            "family": self.family.name,
            "dtype": self.source.dtype,
            "blocks": len(self.blocks),
        }


def _parameter(module: nn.Module) -> nn.Parameter:
    assert isinstance(module.weight, nn.Parameter)
    return module.weight


def _resolve(block: nn.Module, path: str, name: str) -> nn.Module | nn.Parameter:
    """Finds a module or a bare parameter below a block."""
    found: Any = block
    for part in path.split("."):
        found = getattr(found, part, None)
        if found is None:
            raise ModelError(f"{name} is missing from the model; its family's description doesn't fit it.")
    assert isinstance(found, nn.Module | nn.Parameter)
    return found
