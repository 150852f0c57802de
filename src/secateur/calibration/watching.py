"""Sees what layers read in a forward, and adds it to their statistics."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from secateur.calibration.precision import gram_products
from secateur.calibration.statistics import Needs, Statistics
from secateur.network.network import Layer


class LastInputSeen(Exception):
    """Ends a gathering pass: the rest of the block would compute what nobody reads."""


class _RawInputs(TorchFunctionMode):
    """Sees the inputs of bare parameters, which are applied by einsum instead of by a module."""

    def __init__(self, watched: dict[int, Statistics], compute: str) -> None:
        super().__init__()
        self.watched, self.compute = watched, compute

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.einsum:
            operands = [operand for operand in args[1:] if isinstance(operand, Tensor)]
            for operand in operands:
                statistics = self.watched.get(id(operand))
                if statistics is not None:
                    other = next(tensor for tensor in operands if tensor is not operand)
                    with gram_products(self.compute):
                        statistics.add(other.reshape(-1, statistics.total.shape[0]))
        return func(*args, **(kwargs or {}))


@contextmanager
def watching(
    layers: Mapping[str, tuple[Layer, Needs]], found: Mapping[str, Statistics], compute: str, stop: bool = True
) -> Iterator[None]:
    """Adds the inputs of `layers` to `found` while it lasts; with `stop`, ends a forward after the last one."""
    raw = {id(layer.parameter): found[name] for name, (layer, _) in layers.items() if layer.module is None}
    modules = [(name, layer.module) for name, (layer, _) in layers.items() if layer.module is not None]
    last = modules[-1][0] if stop and modules and not raw else None
    handles = []
    for name, module in modules:

        def hook(
            _: nn.Module,
            args: tuple[Any, ...],
            statistics: Statistics = found[name],
            end: bool = name == last,
        ) -> None:
            with gram_products(compute):
                statistics.add(args[0].flatten(0, -2))
            if end:
                raise LastInputSeen

        handles.append(module.register_forward_pre_hook(hook))
    try:
        if raw:
            with _RawInputs(raw, compute):
                yield
        else:
            yield
    finally:
        for handle in handles:
            handle.remove()
