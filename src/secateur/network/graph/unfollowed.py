"""What a network multiplies outside of the layers that are followed: inside of leaf modules, or by its own tensors."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from secateur.network.graph.tracer import evaluating

aten = torch.ops.aten
WEIGHT = {aten.convolution: 1, aten.addmm: 2, aten.mm: 1}  # which argument is the weight


class _Products(TorchDispatchMode):
    """Adds up the multiply-accumulates of convolutions and matrix products with other weights than those followed."""

    def __init__(self, followed: Collection[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.followed = {_place(weight) for weight in followed}
        self.macs = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        which = WEIGHT.get(func.overloadpacket)
        if which is not None and _place(args[which]) not in self.followed:
            self.macs += flop_registry[func.overloadpacket](*args, **(kwargs or {}), out_val=result) // 2
        return result


def unfollowed_macs(model: nn.Module, inputs: tuple[Any, ...], followed: Collection[Tensor]) -> int:
    """Returns multiply-accumulates of a forward pass over all of its inputs, less those with `followed` weights.

    Attention goes step by step meanwhile, as its fast path is one step that can't be looked into.
    """
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with evaluating(model), torch.no_grad(), _Products(followed) as products:
            model(*inputs)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    return int(products.macs)


def _place(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
