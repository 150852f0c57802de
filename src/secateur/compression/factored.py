"""Puts factors in the place of linear layers: a `Reshaped` model, whose code is saved beside it."""

from __future__ import annotations

import copy
from collections.abc import Mapping

from torch import Tensor

from secateur.compression.low_rank import Decomposition
from secateur.network.network import Network
from secateur.network.plain import plain_class, reshaped_class, reshaped_config
from secateur.network.surgery import built


def with_factors(network: Network, factors: Mapping[str, Decomposition]) -> Network:
    """Returns a model with factors in place of some layers; the one that was given isn't to be used afterwards.

    Args:
        network: The model.
        factors: By the layers' names, which are those of modules.

    Raises:
        ModelError: The new model can't be built.
    """
    dtype = network.model.dtype
    state = {name: parameter.detach() for name, parameter in network.model.named_parameters()}
    saved, buffers = network.model.state_dict(), dict(network.model.named_buffers())
    state |= {name: tensor for name, tensor in buffers.items() if name in saved}
    config = copy.deepcopy(network.model.config)
    said = getattr(config, "secateur", None)
    if said is None:
        config, said = reshaped_config(config), {"shapes": {}, "attributes": {}, "replaced": {}}
    shapes, replaced = dict(said["shapes"]), dict(said["replaced"])
    for name, one in factors.items():
        tensors: dict[str, Tensor] = {"down.weight": one.down.to(dtype), "up.weight": one.up.to(dtype)}
        del state[f"{name}.weight"]
        if f"{name}.bias" in state:
            tensors["up.bias"] = state.pop(f"{name}.bias")
        if one.kept is not None:
            tensors["kept.weight"] = one.kept.to(dtype)
        for old in (f"{name}.weight", f"{name}.bias"):
            shapes.pop(old, None)
        for part, tensor in tensors.items():
            state[f"{name}.{part}"] = tensor.contiguous()
            shapes[f"{name}.{part}"] = list(tensor.shape)
        replaced[name] = "factors" if one.kept is None else "factors+weights"
    kind = reshaped_class(plain_class(network.model))
    config.secateur = {**said, "shapes": shapes, "replaced": replaced}
    return built(network, config, kind, state)
