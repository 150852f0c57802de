"""Repairs a traced network after a cut: least squares for what reads removed units, and batch norms' statistics."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from secateur.calibration.batches import Batch
from secateur.calibration.readings import ROWS, Sample, fitting_moments, sampled_outputs
from secateur.linear_algebra import DAMPING
from secateur.network.graph.network import GraphNetwork
from secateur.network.network import Layer
from secateur.network.units import UnitGroup
from secateur.progress import Progress
from secateur.solvers.removal import refit

TARGET_BYTES = 1 << 30  # of the dense network's outputs that are held at a time


def repair(
    network: GraphNetwork,
    small: nn.Module,
    keep: Mapping[str, Tensor],
    batches: Sequence[Batch],
    damping: float | None,
    progress: Progress,
    notes: list[str],
) -> dict[str, tuple[float, float]]:
    """Fits every layer that reads units which went to what the dense one gives, in the order of computation.

    Each layer is fitted on what the network gives it after those before it were fitted, biases included.

    Args:
        network: The network before the cut.
        small: After it; changed in place.
        keep: (units,) bool by the name of a group.
        batches: Calibration data.
        damping: Relative to the Gram matrix's mean diagonal; None takes the usual.
        progress: Shows progress.
        notes: Gets what couldn't be fitted.

    Returns:
        By group: the mean relative error of what its readers give, before and after their fit.
    """
    readers: dict[str, list[UnitGroup]] = defaultdict(list)
    for group in network.groups:
        if group.name in keep and not bool(keep[group.name].all()):
            for reader in group.readers:
                readers[reader.layer.name].append(group)
    order = [name for name, _ in network.found.readers if name in readers and not network.shared(name)]
    notes += [f"{name} wasn't fitted anew: its weight is used more than once." for name in readers.keys() - {*order}]
    errors: dict[str, list[tuple[float, float]]] = defaultdict(list)
    small.eval()
    bar = progress.bar("repairing", len(order))
    for names in _portions(network, order, batches):
        layers = [network.layer(name) for name in names]
        dense = sampled_outputs(network.model, layers, batches, lambda: None)
        for layer in layers:
            rows = _rows_left(network, layer, keep)
            targets = [replace(sample, values=sample.values[:, rows]) for sample in dense.pop(layer.name)]
            pair = _fit(small, layer, targets, batches, damping)
            if pair is None:
                notes.append(
                    f"{layer.name} wasn't fitted anew: units were cut among the positions that it is applied to."
                )
            else:
                for group in readers[layer.name]:
                    errors[group.name].append(pair)
            bar()
    means = {name: [sum(side) / len(side) for side in zip(*pairs, strict=True)] for name, pairs in errors.items()}
    return {name: (before, after) for name, (before, after) in means.items()}


def _portions(network: GraphNetwork, order: Sequence[str], batches: Sequence[Batch]) -> Iterator[list[str]]:
    """Yields layers in portions whose outputs may be held at once."""
    portion: list[str] = []
    room = TARGET_BYTES
    for name in order:
        size = 4 * ROWS * len(batches) * network.layer(name).shape[0]
        if portion and size > room:
            yield portion
            portion, room = [], TARGET_BYTES
        portion.append(name)
        room -= size
    if portion:
        yield portion


def _fit(
    small: nn.Module, dense: Layer, targets: Sequence[Sample], batches: Sequence[Batch], damping: float | None
) -> tuple[float, float] | None:
    """Fits one layer; returns its relative error before and after, or None if it can't be fitted."""
    module = small.get_submodule(dense.name)
    weight, bias = module.weight, getattr(module, "bias", None)
    assert isinstance(weight, nn.Parameter)
    layer = Layer(dense.name, weight, dense.layout, dense.name, module)
    moments = fitting_moments(small, layer, targets, batches)
    if moments is None:
        return None
    W = layer.matrix().float()
    every = torch.ones(W.shape[1], dtype=torch.bool)
    b = None if bias is None else bias.detach().float()
    done = refit(W, b, moments, every, DAMPING if damping is None else damping)
    with torch.no_grad():
        layer.matrix().copy_(done.W)
        if bias is not None and done.bias is not None:
            bias.copy_(done.bias)
    return done.error_before, done.error


def _rows_left(network: GraphNetwork, layer: Layer, keep: Mapping[str, Tensor]) -> Tensor:
    """Returns which outputs of a layer are left, by their index in the dense network."""
    stays = torch.ones(layer.shape[0], dtype=torch.bool)
    for group in network.groups:
        if group.name in keep:
            for part in group.slices:
                if (part.name, part.axis) == (f"{layer.name}.weight", 0):
                    stays[part.index[~keep[group.name]].flatten()] = False
    return stays.nonzero().flatten()


def renormalize(small: nn.Module, batches: Sequence[Batch]) -> bool:
    """Estimates the running statistics of batch norms anew: means over all batches.

    Returns:
        Whether there was anything to estimate, and enough to estimate it from.
    """
    norms = [
        module for module in small.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None
    ]  # fmt: skip
    if not norms or sum(batch.size for batch in batches) < 2:
        return False
    before = [(module, module.momentum) for module in norms]
    small.eval()
    with torch.no_grad():
        for module in norms:
            module.reset_running_stats()
            module.momentum = None  # the mean of all batches
            module.train()
        for batch in batches:
            small(*batch.inputs)
    small.eval()
    for module, momentum in before:
        module.momentum = momentum
    return True
