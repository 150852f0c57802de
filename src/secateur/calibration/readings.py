"""What linear and convolutional layers of any network read, as rows of the columns of their matrix."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from secateur.calibration.batches import Batch
from secateur.calibration.statistics import INPUTS, Gradients, Needs, Statistics
from secateur.calibration.targets import Moments, MomentSums
from secateur.network.network import Layer
from secateur.processes import ALONE

ROWS = 2048  # positions of one batch that are looked at, drawn anew for each

Loss = Callable[[Any, Any], Tensor]


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
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    x = functional.pad(x, module._reversed_padding_repeated_twice, mode)
    for axis in range(dims):
        kernel, dilation, stride = (one[axis] for one in (module.kernel_size, module.dilation, module.stride))
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
        module.register_forward_hook(lambda _, args, output, act=act: act(args, output))
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


def match_moments(
    dense: nn.Module, small: nn.Module, layers: tuple[Layer, Layer], rows: Tensor, batches: Sequence[Batch]
) -> Moments:
    """Returns moments of what a layer of the smaller network reads, with what the dense one's gives as the target.

    Args:
        dense: The network before the cut.
        small: The network after it.
        layers: The same layer in both.
        rows: (out of the smaller one,) int64: its outputs among the dense one's.
        batches: What to feed both.
    """
    big, little = layers
    assert big.module is not None
    assert little.module is not None
    seen: dict[str, Tensor] = {}
    acts: dict[nn.Module, Callable[[tuple[Any, ...], Any], None]] = {
        big.module: lambda _, output: seen.update(t=outputs(big.module, output)),  # type: ignore[arg-type]
        little.module: lambda args, _: seen.update(x=columns(little.module, args[0])),  # type: ignore[arg-type]
    }
    sums = MomentSums(little, little.parameter.device)
    with _hooked(acts), torch.inference_mode():
        for number, batch in enumerate(batches):
            dense(*batch.inputs)
            small(*batch.inputs)
            sums.add(_picked(seen["x"], number), _picked(seen["t"][..., rows], number), "float32")
    return sums.total(ALONE)
