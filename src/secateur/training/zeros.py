"""What training must not touch: the weights that are zero, and the dtype that the model is stored in."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from secateur.bits import bits_of, clear
from secateur.errors import ModelError
from secateur.network.network import Layer, Network


class Zeros:
    """The weights of some layers that are zero, which stay so."""

    def __init__(self, layers: Sequence[Layer]) -> None:
        stored = {id(layer.parameter): layer.parameter for layer in layers if layer.zeros()}
        self.held = [(one, bits_of(one.detach() != 0)) for one in stored.values()]
        self.number = sum(int((bits == 0).sum()) for _, bits in self.held)

    @torch.no_grad()
    def hold(self) -> None:
        """Sets them to zero again, wherever the parameters are by now."""
        self.held = [(parameter, bits.to(parameter.device)) for parameter, bits in self.held]
        for parameter, bits in self.held:
            clear(parameter, bits)

    @torch.no_grad()
    def settle(self) -> None:
        """Has no other weight of these layers be zero: one that is becomes the dtype's smallest normal number."""
        self.hold()
        for parameter, bits in self.held:
            parameter[(parameter == 0) & (bits != 0)] = torch.finfo(parameter.dtype).smallest_normal


def zeros_of(network: Network) -> Zeros:
    """Returns the zeros of all of a model's layers, tables and heads included."""
    return Zeros([*network.layers(), *network.outside()])


@contextmanager
def trainable(network: Network, zeros: Zeros) -> Iterator[None]:
    """While it lasts, a model's parameters are float32, require gradients, and keep no cache of past tokens.

    Raises:
        ModelError: What was trained doesn't fit the dtype that the model is stored in.
    """
    model: Any = network.model
    tensors: list[Tensor] = [*model.parameters(), *model.buffers()]
    low = [(one, one.dtype) for one in tensors if one.is_floating_point() and one.dtype != torch.float32]
    for tensor, _ in low:
        tensor.data = tensor.data.float()
    modes: dict[nn.Module, bool] = {module: module.training for module in model.modules()}
    cached = getattr(model.config, "use_cache", None)
    if cached:
        model.config.use_cache = False
    model.requires_grad_(True)
    try:
        yield
    finally:
        model.to("cpu")
        model.requires_grad_(False)
        for parameter in model.parameters():
            parameter.grad = None
        if cached:
            model.config.use_cache = cached
        for tensor, dtype in low:
            tensor.data = tensor.data.to(dtype)
        for module, training in modes.items():
            module.training = training
    if not all(bool(torch.isfinite(one).all()) for one in model.parameters()):
        raise ModelError(f"{network.source.name}: the trained weights don't fit {model.dtype}; give dtype: float32.")
    zeros.settle()
