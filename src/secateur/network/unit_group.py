"""A group of units: what can be removed as one piece, and every tensor slice that goes with it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from secateur.network.network import Layer, Network


@dataclass(frozen=True)
class Slice:
    """What belongs to a group's units in one tensor.

    Attributes:
        name: The tensor's full name in the model; the first of its names where it is tied.
        axis: The stored axis that counts units.
        index: (units, width) int64, each unit's places along the axis.
    """

    name: str
    axis: int
    index: Tensor


@dataclass(frozen=True)
class Reader:
    """A linear layer that reads a group's units.

    Attributes:
        layer: The layer.
        index: (units, width) int64, each unit's columns of `layer.matrix()`.
    """

    layer: Layer
    index: Tensor


@dataclass(frozen=True)
class UnitGroup:
    """All units of one kind at one place.

    Attributes:
        name: Where: `model.layers.0/neuron`, or `model/layer` for what isn't inside a block.
        unit: The kind.
        count: How many units there are.
        block: Index of the block; None for what concerns the whole model.
        produces, consumes: Slices of tensors that compute the units and that read them.
        follows: Slices that merely have a place per unit (a norm's weight, a table of positions).
        readers: The linear layers among the consumers.
        whole: By unit: names of tensors that go as a whole, for layers and halves.
        network: Where the tensors are.
        shared: Groups of the same name here lose the same units (T5's blocks share the biases of positions by head).
    """

    name: str
    unit: str
    count: int
    block: int | None
    produces: tuple[Slice, ...]
    consumes: tuple[Slice, ...]
    network: Network = field(repr=False, compare=False)
    follows: tuple[Slice, ...] = ()
    readers: tuple[Reader, ...] = ()
    whole: tuple[tuple[str, ...], ...] = ()
    shared: str | None = None

    @property
    def slices(self) -> tuple[Slice, ...]:
        """All slices that go with a unit."""
        return (*self.produces, *self.consumes, *self.follows)

    @property
    def weights(self) -> list[Slice]:
        """The coupled slices of weights, producers first; no biases, norms or tables."""
        return [part for part in (*self.produces, *self.consumes) if self.tensor(part.name).ndim > 1]

    def tensor(self, name: str) -> Tensor:
        """Returns a parameter or a buffer by its full name."""
        module, _, attribute = name.rpartition(".")
        found: Tensor = getattr(self.network.model.get_submodule(module), attribute)
        return found.detach()

    def vectors(self, part: Slice) -> Tensor:
        """Returns (units, length) float32: what a slice holds of each unit, flattened."""
        tensor = self.tensor(part.name).movedim(part.axis, 0)
        taken = tensor[part.index.to(tensor.device)]  # (units, width, ...)
        return taken.flatten(1).float()

    def matrices(self) -> list[Tensor]:
        """Returns (units, length) float32 for every coupled tensor of weights, producers first; no norms or tables."""
        if self.whole:
            rows = [torch.cat([self.tensor(name).flatten().float() for name in names]) for names in self.whole]
            return [nn.utils.rnn.pad_sequence(rows, batch_first=True)]
        return [self.vectors(part) for part in self.weights]

    def parameters_each(self) -> Tensor:
        """Returns (units,) int64: how many parameters go with each unit."""
        if self.whole:
            return torch.tensor([sum(self.tensor(name).numel() for name in names) for names in self.whole])
        total = torch.zeros(self.count, dtype=torch.int64)
        known = dict(self.network.model.named_parameters())  # a norm's running statistics aren't parameters
        for part in self.slices:
            if part.name not in known:
                continue
            tensor = known[part.name]
            total += part.index.shape[1] * (tensor.numel() // tensor.shape[part.axis])
        return total


@dataclass(frozen=True)
class Halves(UnitGroup):
    """The attention halves, or the MLP halves, of a model's blocks.

    Attributes:
        blocks: Index of each unit's block.
    """

    blocks: tuple[int, ...] = ()


def span(start: int, units: int, width: int) -> Tensor:
    """Returns (units, width): consecutive places from `start` on."""
    return start + torch.arange(units * width).reshape(units, width)


def namer(network: Network) -> Callable[[Tensor], str]:
    names = {id(parameter): name for name, parameter in network.model.named_parameters()}
    return lambda tensor: names[id(tensor)]
