"""The gradients that scores read while a model trains."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, distributed, nn

from secateur.errors import UsageError
from secateur.training.sharded import is_sharded, own

NOT_FINITE = (
    "the gradients of the {steps} steps up to step {step} were NaN or infinite, so the score says nothing: is the "
    "learning rate too high, or does the schedule begin while a GradScaler still looks for its scale?"
)


def gradient_of(name: str, parameter: nn.Parameter) -> Tensor:
    """Returns this process's part of a parameter's gradient.

    Raises:
        UsageError: It has none.
    """
    if parameter.grad is None:
        raise UsageError(
            f"{name} has no gradient: call pruner.step() after optimizer.step() and before zero_grad(), and leave "
            "frozen layers out with exclude=."
        )
    return own(parameter.grad.detach())


def all_finite(gradients: Sequence[Tensor], parameters: Sequence[nn.Parameter]) -> bool:
    """Whether no gradient is NaN or infinite, in any process.

    Args:
        gradients: This process's parts.
        parameters: What they are of.
    """
    device = gradients[0].device
    sums = torch.stack([g.sum(dtype=torch.float32).to(device) for g in gradients])
    odd = (~torch.isfinite(sums)).sum()
    if any(is_sharded(parameter) for parameter in parameters):
        distributed.all_reduce(odd)
    return not odd
