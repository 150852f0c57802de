"""The next-token loss through the whole model, and gradients of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from secateur.calibration.inputs import model_inputs, predicted_ids
from secateur.calibration.precision import products
from secateur.calibration.statistics import Gradients, Needs
from secateur.calibration.windows import Windows
from secateur.errors import UsageError
from secateur.network.network import Layer, Network
from secateur.processes import ALONE, Processes
from secateur.progress import Progress


def loss_gradients(
    network: Network,
    layers: Sequence[Layer],
    windows: Windows,
    needs: Needs,
    compute: str,
    progress: Progress,
    team: Processes = ALONE,
) -> dict[str, Gradients]:
    """Returns the layers' gradients of the next-token loss, by name: one pass through the whole model and back.

    The sums of all layers are held at once, in main memory.

    Raises:
        UsageError: The model has no next-token head.
    """
    _check_loss(network)
    cpu = torch.device("cpu")
    found = {layer.name: Gradients.empty(layer.shape, needs, cpu) for layer in layers}
    with products(compute, network.model.dtype, cpu), differentiating(layers) as parameters:
        for part in progress.track(windows.batches(1)[team.rank :: team.size], "gradients of the loss"):
            add_gradients(found, layers, parameters, torch.autograd.grad(_loss(network, part), parameters))
    for layer in layers:
        found[layer.name].add_up(team)
        found[layer.name].check(layer.name)
    return found


def output_sensitivity(
    network: Network,
    layers: Sequence[Layer],
    windows: Windows,
    compute: str,
    progress: Progress,
    team: Processes = ALONE,
) -> dict[str, Tensor]:
    """Returns how much an error of each of the layers' outputs costs, by the layer's name: (out,) float32.

    An error e at a token's outputs raises the loss of all tokens by about half the sum of s e², s being the mean over
    tokens of the squared gradient of that loss: the diagonal of the empirical Fisher information of the outputs.

    Raises:
        UsageError: The model has no next-token head.
    """
    _check_loss(network)
    cpu = torch.device("cpu")
    found = {layer.name: torch.zeros(layer.shape[0]) for layer in layers}
    tokens = torch.zeros(1, dtype=torch.float64)
    with products(compute, network.model.dtype, cpu), differentiating(layers), _outputs_of(layers) as outputs:
        for part in progress.track(windows.batches(1)[team.rank :: team.size], "gradients of the loss"):
            loss = _loss(network, part, "sum")
            seen = [outputs.pop(layer.name) for layer in layers]
            for layer, gradient in zip(layers, torch.autograd.grad(loss, seen), strict=True):
                found[layer.name] += gradient.flatten(0, -2).float().square().sum(0)
            tokens += part.tokens
    team.sum(tokens)
    for squares in found.values():
        team.sum(squares)
    return {name: squares / tokens.item() for name, squares in found.items()}


def _check_loss(network: Network) -> None:
    if network.store is not None:
        raise UsageError("--gradient loss needs the whole model in memory; a streamed one takes --gradient block.")
    if not network.generates:
        raise UsageError(f"--gradient loss needs a next-token loss, which {network.architecture} hasn't; use block.")


def _loss(network: Network, windows: Windows, reduction: str = "mean") -> Tensor:
    """Returns the next-token loss of windows."""
    first, others = model_inputs(network, windows)
    logits = network.model(first, **others).logits[:, windows.given - 1 : -1].float()
    targets = predicted_ids(network, windows)[:, windows.given :]
    return functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction=reduction)


@contextmanager
def _outputs_of(layers: Sequence[Layer]) -> Iterator[dict[str, Tensor]]:
    """Takes up what layers give in each forward, by their names."""
    outputs: dict[str, Tensor] = {}
    handles = []
    for layer in layers:
        if layer.module is None or layer.expert is not None:
            raise UsageError(
                f"{layer.name} isn't a linear layer of its own, so its outputs can't be weighed by the next-token "
                "loss; leave --gradient loss out."
            )

        def hook(_: nn.Module, args: tuple[Any, ...], output: Tensor, name: str = layer.name) -> None:
            outputs[name] = output

        handles.append(layer.module.register_forward_hook(hook))
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def differentiating(layers: Sequence[Layer]) -> Iterator[list[nn.Parameter]]:
    """Gives the layers' stored weights, each once, of which gradients can be taken for as long as it lasts."""
    parameters = list({id(layer.parameter): layer.parameter for layer in layers}.values())  # experts share one
    before = [parameter.requires_grad for parameter in parameters]
    try:
        with torch.enable_grad():
            for parameter in parameters:
                parameter.requires_grad_(True)
            yield parameters
    finally:
        for parameter, required in zip(parameters, before, strict=True):
            parameter.requires_grad_(required)


def add_gradients(
    found: Mapping[str, Gradients],
    layers: Sequence[Layer],
    parameters: Sequence[nn.Parameter],
    gradients: Sequence[Tensor],
) -> None:
    of = {id(parameter): gradient for parameter, gradient in zip(parameters, gradients, strict=True)}
    for layer in layers:
        found[layer.name].add(layer.as_matrix(of[id(layer.parameter)]))
