"""What the repair of what reads neurons and heads rests on: weights, moments, the refit of a layer."""

from __future__ import annotations

import torch
from torch import Tensor

from secateur.calibration.statistics import Statistics
from secateur.calibration.targets import Moments
from secateur.linear_algebra import DAMPING
from secateur.network.network import Layer, Network
from secateur.network.unit_group import Reader
from secateur.solvers.removal import refit
from secateur.structure.job import Job


def adds_plainly(network: Network) -> bool:
    """Whether what the halves of blocks give is added to the hidden states as it is, without a norm behind it."""
    before = network.family.pre_norm
    pre_norm = before is None or bool(getattr(network.model.config, before))
    return network.family.adds and pre_norm


def weights_of(job: Job, layer: Layer) -> tuple[Tensor, Tensor | None]:
    """Returns a layer's weight (out, in) and bias (out,), float32, on the compute device; experts have no bias."""
    W = layer.matrix().to(job.network.device, torch.float32)
    bias = None if layer.expert is not None else getattr(layer.module, "bias", None)
    return W, None if bias is None else bias.detach().to(job.network.device, torch.float32)


def weighed(job: Job, layer: Layer, W: Tensor) -> Tensor:
    """Returns (out, in): rows as large as an error of theirs is dear, where the solver goes by the next-token loss."""
    known = job.sensitivity.get(layer.name)
    return W if known is None else W * known.sqrt().to(W.device)[:, None]


def damping_of(job: Job) -> float:
    return DAMPING if job.stage.damping is None else job.stage.damping


def moments_of(job: Job, reader: Reader, inputs: dict[str, Statistics]) -> Moments | None:
    known = inputs.get(reader.layer.reads)
    if known is None or known.gram is None:
        return None
    W, b = weights_of(job, reader.layer)
    return Moments.of_outputs(W, b, known.count, known.G, known.total.float())


def refit_layer(job: Job, layer: Layer, moments: Moments, columns: Tensor) -> tuple[float, float]:
    """Fits a layer's weight, and its bias if it has one, anew on some of its inputs, in place.

    Args:
        job: The stage's work.
        layer: The layer.
        moments: Of what it reads and should give.
        columns: (in,) bool: the inputs that stay.

    Returns:
        The relative error before and after.
    """
    W, b = weights_of(job, layer)
    done = refit(W, b, moments, columns, damping_of(job))
    if layer.expert is None and moments.count < int(columns.sum()) and not job.scarce:
        job.scarce = True
        job.notes.append(
            f"Layers are fitted on {moments.count:,} calibration tokens, fewer than the {int(columns.sum()):,} inputs "
            f"of {layer.name}: give more --samples."
        )
    with torch.no_grad():
        layer.matrix().copy_(done.W.to(layer.parameter.dtype))
    if done.bias is not None:
        bias = layer.module.bias  # type: ignore[union-attr]
        assert isinstance(bias, Tensor)
        with torch.no_grad():
            bias.copy_(done.bias.to(bias.dtype))
    return done.error_before, done.error
