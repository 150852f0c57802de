"""A model together with what we know of its structure: its blocks and its linear layers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import accumulate, groupby
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from secateur.errors import ModelError
from secateur.memory import give_back
from secateur.network.family import Family, Layout, Projection, Stack
from secateur.network.quantized import OnGrid
from secateur.network.reshaped import Factors
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
        module: The module that applies the weight; None for a bare parameter (XLNet). Experts share one.
        table: It is an embedding, whose rows are looked up: it has no statistics of an input.
        block: Index of the block that it belongs to; None outside of the blocks.
        expert: Index of the expert whose weight it is: a part of `parameter`, on its first axis; None if it is all.
    """

    name: str
    parameter: nn.Parameter
    layout: Layout
    reads: str
    module: nn.Module | None
    table: bool = False
    block: int | None = None
    expert: int | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """(outputs, inputs)"""
        return tuple(self.matrix().shape)  # type: ignore[return-value]

    @property
    def weights(self) -> int:
        """How many weights it has."""
        return self.part(self.parameter).numel()

    @property
    def identity(self) -> tuple[int, int | None]:
        """What layers that are one and the same weight (ties) have in common."""
        return id(self.parameter), self.expert

    def part(self, stored: Tensor) -> Tensor:
        """Returns the layer's part of a tensor of the stored weight's shape, without a copy."""
        return stored if self.expert is None else stored[self.expert]

    def matrix(self) -> Tensor:
        """Returns the weight as (out, in), without a copy, in the stored dtype."""
        return self.as_matrix(self.parameter.detach())

    def as_matrix(self, stored: Tensor) -> Tensor:
        """Shows a tensor of the stored weight's shape (a gradient, a mask) as (out, in), without a copy."""
        flat = self.part(stored).flatten(1)
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
        return self.weights - int(torch.count_nonzero(self.matrix()))


class Network:
    """A loaded model, its family and its tokenizer.

    Attributes:
        model: The transformers model, in eval mode.
        family: The description of its architecture.
        tokenizer: Its tokenizer, or None.
        source: Where it came from.
        device: Where blocks are computed; the model itself stays in main memory.
        notes: What the user should know about the loading.
        base: The model without its head.
        prefix: What the names of its parts begin with in the model.
        kept: (vocabulary,) int64: the ids that its tokens had before its vocabulary was cut; None if it wasn't.
        quantized: Where the weights of quantized layers lie, by the layer's name.
        store: Where the blocks' weights are read from when their turn comes; None if they are all in memory.
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
    ) -> None:
        self.model = model
        self.family = family
        self.tokenizer = tokenizer
        self.source = source
        self.device = device
        self.notes = notes
        self.store = store
        self.kept: Tensor | None = None
        self.quantized: dict[str, OnGrid] = {}
        self._resident: set[int] = set()
        self.base = model.base_model
        self.prefix = "" if self.base is model else f"{model.base_model_prefix}."
        for stack in family.stacks:
            if not isinstance(_submodule(self.base, stack.blocks), nn.ModuleList):
                raise ModelError(
                    f"{self.architecture} has no {stack.blocks}, where a {family.name} model has its {stack.name}'s "
                    "blocks; only whole models can be pruned."
                )

    @property
    def blocks(self) -> tuple[nn.Module, ...]:
        """All blocks in the order of computation, an encoder's before its decoder's; see `put_block`."""
        return tuple(block for stack in self.family.stacks for block in self._list(stack))

    def _list(self, stack: Stack) -> nn.ModuleList:
        found: nn.ModuleList = self.base.get_submodule(stack.blocks)
        return found

    @property
    def ranges(self) -> tuple[range, ...]:
        """Each stack's blocks, as indices into `blocks`."""
        ends = list(accumulate(len(self._list(stack)) for stack in self.family.stacks))
        return tuple(range(start, end) for start, end in zip([0, *ends], ends, strict=False))

    def _place(self, block: int) -> tuple[Stack, int]:
        """Returns a block's stack and its index in there."""
        for stack, indices in zip(self.family.stacks, self.ranges, strict=True):
            if block in indices:
                return stack, block - indices.start
        raise IndexError(f"there is no block {block}; {self.source.name} has {len(self.blocks)}.")

    def stack_of(self, block: int) -> Stack:
        """Returns the stack that the block with this index is in."""
        return self._place(block)[0]

    def put_block(self, block: int, module: nn.Module) -> None:
        """Puts a module in the place of a block."""
        stack, index = self._place(block)
        self._list(stack)[index] = module

    def with_model(self, model: Any) -> Network:
        """Returns another model of the same family and origin, in memory."""
        other = Network(model, self.family, self.tokenizer, self.source, self.device, self.notes)
        other.kept = self.kept
        return other

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
            give_back()

    def visit(self, layers: Iterable[Layer]) -> Iterator[Layer]:
        """Yields layers, each while its weights are in memory; best in forward order."""
        for block, some in groupby(layers, key=lambda layer: layer.block):
            with self.resident(block):
                yield from some

    def filed(self, name: str) -> bool:
        """Whether files have a weight by this name; not where it is a tie that they have by another."""
        return self.store is None or bool(self.store.known(name))

    def as_filed(self, name: str, tensor: Tensor) -> dict[str, Tensor]:
        """Returns a weight's value as the files of a streamed network hold it, by the names there."""
        return {name: tensor} if self.store is None else self.store.as_filed(name, tensor)

    def block_name(self, block: int) -> str:
        """Returns the full name of the block with this index."""
        stack, index = self._place(block)
        return f"{self.prefix}{stack.blocks}.{index}"

    def inside(self, name: str) -> bool:
        """Whether a parameter of this full name belongs to a block."""
        return name.startswith(tuple(f"{self.prefix}{stack.blocks}." for stack in self.family.stacks))

    def projections(self, block: int) -> list[Projection]:
        """Returns the description of each of a block's linear layers, in the order of `block_layers`."""
        return [projection for projection, _ in self.described_layers(block)]

    def block_layers(self, block: int) -> list[Layer]:
        """Returns a block's linear layers in the order in which it computes them."""
        return [layer for _, layer in self.described_layers(block)]

    def described_layers(self, block: int) -> list[tuple[Projection, Layer]]:
        """Returns a block's linear layers, each behind its description; a half that was removed has none.

        Of a layer that stands as factors there are the single weights beside these, if any: `up_proj.kept`.
        """
        replaced = self._replaced(block)
        gone = tuple(f"{path}." for path in replaced)
        module = self.blocks[block]
        there = []
        for one in self.stack_of(block).projections:
            if one.where is not None and _find(module, one.where) is None:
                continue
            if replaced.get(one.path) == "factors+weights":
                there.append(replace(one, path=f"{one.path}.kept", layout=Layout.OUT_IN))
            elif not f"{one.path}.".startswith(gone):
                there.append(one)
        found: list[tuple[Projection, Layer]] = []
        for experts, some in groupby(there, key=lambda projection: projection.experts):
            layers = [(projection, self._layer(block, projection)) for projection in some]
            if experts:  # one expert after the other
                number = len(layers[0][1].parameter)
                layers = [(one, self._expert(layer, index)) for index in range(number) for one, layer in layers]
            found += layers
        return found

    def _replaced(self, block: int) -> dict[str, str]:
        """Returns what stands in for which module of a block, by its path in there."""
        prefix = f"{self.block_name(block)}."
        found = getattr(self.model.config, "secateur", {"replaced": {}})["replaced"]
        return {path.removeprefix(prefix): kind for path, kind in found.items() if path.startswith(prefix)}

    def factors(self, block: int) -> list[tuple[Projection, Factors]]:
        """Returns those of a block's linear layers that stand as factors, each behind its description."""
        modules = [(one, _find(self.blocks[block], one.path)) for one in self.stack_of(block).projections]
        return [(one, module) for one, module in modules if isinstance(module, Factors)]

    @property
    def factorized(self) -> bool:
        """Whether a linear layer stands as factors."""
        return any(self.factors(block) for block in range(len(self.blocks)))

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

    def _expert(self, layer: Layer, index: int) -> Layer:
        """Returns one expert's part of a weight that all experts share."""
        assert layer.block is not None
        assert self.family.experts is not None
        module = self.blocks[layer.block].get_submodule(self.family.experts)
        name, reads = f"{layer.name}.{index}", f"{layer.reads}.{index}"
        return replace(layer, name=name, reads=reads, module=module, expert=index)

    def outside(self) -> list[Layer]:
        """Returns the weights outside of the blocks that can be pruned when named: tables and linear layers."""
        inside = {id(module) for block in self.blocks for module in block.modules()}
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
            if name != layer.name
            and not isinstance(module, Factors)  # whose weight is that of a part
            and getattr(module, "weight", None) is layer.parameter
        ]

    def dimension(self, name: str, stack: Stack | None = None) -> int | None:
        """Returns a dimension from the config (`hidden`, `heads`, `positions` ...), None if it has none.

        Args:
            name: Which one.
            stack: Whose; None stands for the whole model.
        """
        field = (self.family if stack is None else stack).config.get(name)
        value = getattr(self.model.config, field, None) if field else None
        return value if isinstance(value, int) and value > 0 else None

    @property
    def architecture(self) -> str:
        """The model's class name, e.g. `LlamaForCausalLM`."""
        return type(self.model).__name__

    @property
    def generates(self) -> bool:
        """Whether the model has a next-token head, so that perplexity and `generate` make sense."""
        predicting = self.family.objective in ("causal", "seq2seq")
        return predicting and self.model.get_output_embeddings() is not None

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
            "reshaped": hasattr(type(self.model), "plain"),
        }


def _parameter(module: nn.Module) -> nn.Parameter:
    assert isinstance(module.weight, nn.Parameter)
    return module.weight


def _submodule(base: nn.Module, path: str) -> nn.Module | None:
    try:
        return base.get_submodule(path)
    except AttributeError:
        return None


def _resolve(block: nn.Module, path: str, name: str) -> nn.Module | nn.Parameter:
    """Finds a module or a bare parameter below a block."""
    found = _find(block, path)
    if found is None:
        raise ModelError(f"{name} is missing from the model; its family's description doesn't fit it.")
    assert isinstance(found, nn.Module | nn.Parameter)
    return found


def _find(block: nn.Module, path: str) -> Any:
    """Returns what has this path below a block; None if nothing has."""
    found: Any = block
    for part in path.split("."):
        found = getattr(found, part, None)
    return found
