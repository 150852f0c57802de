"""What linear and convolutional layers of any network read, as rows of the columns of their matrix."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from secateur.calibration.batches import Batch, Loss, loss_of
from secateur.calibration.statistics import INPUTS, Gradients, Needs, Statistics
from secateur.errors import CalibrationError
from secateur.network.graph.own_layers import application, has_own_forward
from secateur.network.network import Layer

ROWS = 2048  # positions of one batch that are looked at, drawn anew for each


@dataclass(frozen=True)
class Sample:
    """What a layer reads or gives at some positions of a batch.

    Attributes:
        positions: How many there are, over all examples.
        values: (rows, in) or (rows, out) at those that were drawn.
    """

    positions: int
    values: Tensor


def windows(module: nn.Module, x: Tensor) -> Tensor:
    """Returns (batch, positions ..., channels, window ...): what a layer's matrix is multiplied with, as a view.

    Args:
        module: A linear layer, or a convolution of one group.
        x: Its input.
    """
    if isinstance(module, nn.Linear):
        return x if x.ndim > 1 else x[None]
    assert isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d)
    dims = len(module.kernel_size)
    strides, dilations = module.stride, module.dilation
    own = application(module, x) if has_own_forward(module) else None
    if own is not None:
        strides, dilations = own.stride, own.dilation
        x = functional.pad(own.x, [side for width in own.padding[::-1] for side in (width, width)])
    else:
        mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
        x = functional.pad(x, module._reversed_padding_repeated_twice, mode)
    for axis in range(dims):
        kernel, dilation, stride = (one[axis] for one in (module.kernel_size, dilations, strides))
        reach = dilation * (kernel - 1) + 1
        x = x.unfold(2 + axis, reach, stride)[..., ::dilation]  # the window's places become the last axis
    return x.movedim(1, dims + 1)


def sampled_windows(module: nn.Module, x: Tensor, number: int) -> Sample:
    """Returns what a layer's matrix is multiplied with, at positions that are drawn by the batch's number."""
    found = windows(module, x)
    inner = 1 if isinstance(module, nn.Linear) else (found.ndim - 2) // 2 + 1  # axes of a window
    return _sample(found, found.ndim - inner, number)


def sampled_outputs(module: nn.Module, y: Tensor, number: int) -> Sample:
    """Returns what a layer gives, at the positions that `sampled_windows` draws."""
    y = y.movedim(channel_axis(module), -1)
    return _sample(y if y.ndim > 1 else y[None], y.ndim - 1, number)


def channel_axis(module: nn.Module) -> int:
    """Returns the axis of a layer's output that has its units."""
    return -1 if isinstance(module, nn.Linear) else 1


def _sample(values: Tensor, leading: int, number: int) -> Sample:
    leading = max(leading, 1)
    shape = values.shape[:leading]
    positions = shape.numel()
    if positions <= ROWS:
        return Sample(positions, values.reshape(positions, -1))
    some = torch.randperm(positions, generator=torch.Generator().manual_seed(number))[:ROWS]
    return Sample(positions, values[torch.unravel_index(some.to(values.device), shape)].flatten(1))


@contextmanager
def _hooked(pairs: Mapping[nn.Module, Callable[[tuple[Any, ...], Any], None]]) -> Iterator[None]:
    handles = [
        module.register_forward_hook(
            lambda _, args, named, output, act=act: act(args or tuple(named.values()), output), with_kwargs=True
        )
        for module, act in pairs.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def gather(
    model: nn.Module, layers: Sequence[Layer], needs: Needs, batches: Sequence[Batch], tick: Callable[[], None]
) -> dict[str, Statistics]:
    """Returns statistics of what layers read, by their `reads`, from one pass."""
    if not needs & INPUTS:
        return {}
    found: dict[str, Statistics] = {}
    acts: dict[nn.Module, Callable[[tuple[Any, ...], Any], None]] = {}
    for layer in layers:
        statistics = Statistics.empty(layer.shape[1], needs, layer.parameter.device)
        found[layer.reads] = statistics
        module = layer.module
        assert module is not None

        def add(args: tuple[Any, ...], _: Any, module: nn.Module = module, own: Statistics = statistics) -> None:
            own.add(sampled_windows(module, args[0], own.count).values)

        acts[module] = add
    with _hooked(acts), torch.inference_mode():
        for batch in batches:
            model(*batch.inputs)
            tick()
    for layer in layers:
        found[layer.reads].check(layer.name)
    return found


def gather_gradients(
    model: nn.Module,
    layers: Sequence[Layer],
    needs: Needs,
    batches: Sequence[Batch],
    loss: Loss,
    tick: Callable[[], None],
) -> dict[str, Gradients]:
    """Returns gradients of the mean loss of each batch by the layers' weights, by name.

    Raises:
        CalibrationError: The loss can't be computed, isn't one number, or depends on none of the layers.
    """
    if not layers:
        return {}
    found = {layer.name: Gradients.empty(layer.shape, needs, layer.parameter.device) for layer in layers}
    parameters = [layer.parameter for layer in layers]
    before = [parameter.requires_grad for parameter in parameters]
    try:
        for parameter in parameters:
            parameter.requires_grad_(True)
        with torch.enable_grad():
            for batch in batches:
                value = loss_of(loss, model(*batch.inputs), batch.target)
                if not value.requires_grad:
                    raise CalibrationError("the loss depends on none of the layers whose units are scored.")
                gradients = torch.autograd.grad(value, parameters, allow_unused=True, materialize_grads=True)
                for layer, gradient in zip(layers, gradients, strict=True):
                    found[layer.name].add(layer.as_matrix(gradient))
                tick()
    finally:
        for parameter, required in zip(parameters, before, strict=True):
            parameter.requires_grad_(required)
    for layer in layers:
        found[layer.name].check(layer.name)
    return found
