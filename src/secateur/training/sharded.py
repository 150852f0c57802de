"""Tensors of which a process holds a part (FSDP2's DTensors), and ordinary ones in the same words."""

from __future__ import annotations

from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor


def is_sharded(tensor: Tensor) -> bool:
    """Whether other processes hold parts of it."""
    return isinstance(tensor, DTensor)


def own(tensor: Tensor) -> Tensor:
    """Returns the part that this process holds, without a copy: all of an ordinary tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(part: Tensor, like: nn.Parameter) -> Tensor:
    """Returns all of a tensor whose part this process holds, laid out as a parameter is.

    Args:
        part: This process's part.
        like: The parameter.
    """
    data = like.detach()
    if not isinstance(data, DTensor):
        return part
    mesh, placements = data.device_mesh, data.placements
    found = DTensor.from_local(part, mesh, placements, shape=data.shape, stride=data.stride())
    return found.full_tensor()


def part_of(tensor: Tensor, like: nn.Parameter) -> Tensor:
    """Returns this process's part of a whole tensor, laid out as a parameter is."""
    data = like.detach()
    if not isinstance(data, DTensor):
        return tensor
    return distribute_tensor(tensor, data.device_mesh, data.placements).to_local()
