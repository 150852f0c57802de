"""Sets weights to zero by masks of bits: exact, and many times faster than torch's masked_fill on processors."""

from __future__ import annotations

import torch
from torch import Tensor

INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes of a number


def bits_of(stays: Tensor) -> Tensor:
    """Returns int8, of the same shape: all bits where a weight stays (bool), none where it is to be zero."""
    return stays.to(torch.int8).neg_()


def clear(weights: Tensor, bits: Tensor) -> None:
    """Sets weights to +0, in place, NaN and infinite ones included.

    Args:
        weights: Floating-point numbers of any size.
        bits: What `bits_of` returned, of the same shape, on the same device.
    """
    weights.detach().view(INTEGERS[weights.element_size()]).bitwise_and_(bits)
