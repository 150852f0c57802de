"""What linear and convolutional layers of any network read, as rows of the columns of their matrix."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from secateur.calibration.batches import Batch, Loss
from secateur.calibration.statistics import INPUTS, Gradients, Needs, Statistics
from secateur.calibration.targets import Moments, MomentSums
from secateur.network.graph.own_layers import application, has_own_forward
from secateur.network.network import Layer
from secateur.processes import ALONE

ROWS = 2048  # positions of one batch that are looked at, drawn anew for each


def columns(module: nn.Module, x: Tensor) -> Tensor:
    """Returns (batch, positions, in): what a layer's matrix is multiplied with, a convolution's input unfolded.

    Args:
        module: A linear layer, or a convolution of one group.
        x: Its input.
    """
    if isinstance(module, nn.Linear):
        return x.reshape(x.shape[0] if x.ndim > 1 else 1, -1, x.shape[-1])
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
    places = x.movedim(1, dims + 1)  # (batch, positions ..., channels, window ...)
    return places.reshape(places.shape[0], -1, module.in_channels * int(torch.tensor(module.kernel_size).prod()))


def outputs(module: nn.Module, y: Tensor) -> Tensor:
    """Returns (batch, positions, out): what a layer gives, position by position as `columns` has them."""
    if isinstance(module, nn.Linear):
        return y.reshape(y.shape[0] if y.ndim > 1 else 1, -1, y.shape[-1])
    return y.flatten(2).transpose(1, 2)


def _some(rows: int, number: int) -> Tensor | None:
    """Returns which rows of a batch are looked at; None for all."""
    if rows <= ROWS:
        return None
    return torch.randperm(rows, generator=torch.Generator().manual_seed(number))[:ROWS]


def _picked(values: Tensor, number: int) -> Tensor:
    flat = values.flatten(0, 1)
    some = _some(len(flat), number)
    return flat if some is None else flat[some.to(flat.device)]


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
            own.add(_picked(columns(module, args[0]), own.count))

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
    """Returns gradients of the mean loss of each batch by the layers' weights, by name."""
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
                value = loss(model(*batch.inputs), batch.target)
                for layer, gradient in zip(layers, torch.autograd.grad(value, parameters), strict=True):
                    found[layer.name].add(layer.as_matrix(gradient))
                tick()
    finally:
        for parameter, required in zip(parameters, before, strict=True):
            parameter.requires_grad_(required)
    for layer in layers:
        found[layer.name].check(layer.name)
    return found


@dataclass(frozen=True)
class Sample:
    """What a layer gives for one batch.

    Attributes:
        positions: At how many positions, over all examples.
        values: (rows, out) at some of them.
    """

    positions: int
    values: Tensor


class _Reached(BaseException):
    """Ends a forward behind the layer that was looked for; no Exception, which a traced module would report."""


def sampled_outputs(
    model: nn.Module, layers: Sequence[Layer], batches: Sequence[Batch], tick: Callable[[], None]
) -> dict[str, list[Sample]]:
    """Returns, by layer name, what layers give at some positions of each batch, from one pass."""
    found: dict[str, list[Sample]] = {layer.name: [] for layer in layers}
    number = 0
    acts: dict[nn.Module, Callable[[tuple[Any, ...], Any], None]] = {}
    for layer in layers:
        module = layer.module
        assert module is not None

        def keep(_: Any, output: Any, module: nn.Module = module, own: list[Sample] = found[layer.name]) -> None:
            if len(own) == number:  # the first use only, where a layer is used again
                all_of_them = outputs(module, output)
                own.append(Sample(all_of_them.shape[:2].numel(), _picked(all_of_them, number)))

        acts[module] = keep
    with _hooked(acts), torch.inference_mode():
        for number, batch in enumerate(batches):  # noqa: B007 (the hooks read it)
            model(*batch.inputs)
            tick()
    return found


def fitting_moments(
    model: nn.Module, layer: Layer, targets: Sequence[Sample], batches: Sequence[Batch]
) -> Moments | None:
    """Returns moments of what a layer reads, with what it should give; None if it reads other positions than before.

    Args:
        model: The network; it is run up to the layer only.
        layer: The layer.
        targets: By batch, as `sampled_outputs` gives them.
        batches: What to feed.
    """
    module = layer.module
    assert module is not None
    sums = MomentSums(layer, layer.parameter.device)
    seen: list[Tensor] = []

    def look(args: tuple[Any, ...], _: Any) -> None:
        seen.append(columns(module, args[0]))
        raise _Reached

    with _hooked({module: look}), torch.inference_mode():
        for number, (batch, target) in enumerate(zip(batches, targets, strict=True)):
            with suppress(_Reached):
                model(*batch.inputs)
            read = seen.pop()
            if read.shape[:2].numel() != target.positions:
                return None  # units were cut along the positions, too
            sums.add(_picked(read, number), target.values, "float32")
    return sums.total(ALONE)
